// The library's threads. One operation runs at a time, cut into tasks by its shape alone, so which thread takes a task,
// and how many threads there are, can't change a result.
#pragma once

#include <cstdint>

namespace earthshine {

// Calls task(context, index) for every index below n_tasks, on the calling thread and the workers; returns when all
// have returned. Calls from several threads queue. Tasks must not call run themselves.
void run(int64_t n_tasks, void (*task)(void* context, int64_t index), void* context);

// How many threads work, the caller among them: from 1 to max_threads. Waits for an operation in progress.
constexpr int32_t max_threads = 512;
void set_threads(int32_t n_threads);
int32_t n_threads();

// Holds the lock that `run` takes, for an operation that uses the workspace over several runs.
class Exclusive {
 public:
  Exclusive();
  ~Exclusive();
  Exclusive(const Exclusive&) = delete;
};

// At least `bytes` aligned to 64, kept for the next operation; null where memory is short. Only under Exclusive.
// A layer keeps what passes between its operations in a workspace of its own.
enum class Workspace { operation, layer };
void* workspace(int64_t bytes, Workspace which = Workspace::operation);

template <class Function>
void parallel(int64_t n_tasks, const Function& function) {
  run(n_tasks, [](void* context, int64_t index) { (*static_cast<const Function*>(context))(index); },
      const_cast<Function*>(&function));
}

}  // namespace earthshine
