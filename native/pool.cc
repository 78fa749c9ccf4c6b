#include "pool.h"

#include <pthread.h>
#include <sched.h>

#include <atomic>
#include <cstdlib>
#include <mutex>
#include <vector>

namespace earthshine {
namespace {

constexpr uint32_t closed = 1u << 31;

// Everything a worker touches. What a task is may change only while the gate is closed and nobody is inside. It is
// never freed: workers may outlive the statics of a process that exits.
struct Pool {
  std::recursive_mutex busy;  // held for a whole operation
  std::vector<pthread_t> workers;
  std::atomic<uint32_t> round{0};      // changes when there is work, or when workers should end
  std::atomic<uint32_t> gate{closed};  // of the current round: `closed` or open, and how many workers are inside
  std::atomic<int64_t> next{0};
  int64_t n_tasks = 0;
  void (*task)(void*, int64_t) = nullptr;
  void* context = nullptr;
  std::atomic<bool> ending{false};
  struct {
    void* memory = nullptr;
    int64_t bytes = 0;
  } workspaces[2];
};

Pool* pool = new Pool;

// About 50 us at 4 GHz: longer than the gaps between the operations of one step, shorter than a read from disk.
constexpr int spins = 4000;

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// A worker that wakes up late finds the gate closed. So the caller waits for those that have begun, and never for a
// worker whose processor is taken by another program.
bool enter(Pool* p) {
  uint32_t inside = p->gate.load(std::memory_order_acquire);
  while (!(inside & closed)) {
    if (p->gate.compare_exchange_weak(inside, inside + 1, std::memory_order_acquire)) return true;
  }
  return false;
}

void take_tasks(Pool* p) {
  for (int64_t index; (index = p->next.fetch_add(1, std::memory_order_relaxed)) < p->n_tasks;) {
    p->task(p->context, index);
  }
}

struct Start {
  Pool* pool;
  uint32_t round;
};

void* work(void* argument) {
  const Start start = *static_cast<Start*>(argument);
  delete static_cast<Start*>(argument);
  Pool* p = start.pool;
  uint32_t seen = start.round;
  for (;;) {
    for (int i = 0; i < spins && p->round.load(std::memory_order_acquire) == seen; ++i) pause();
    p->round.wait(seen, std::memory_order_acquire);
    seen = p->round.load(std::memory_order_acquire);
    if (p->ending.load(std::memory_order_acquire)) return nullptr;
    if (enter(p)) {
      take_tasks(p);
      p->gate.fetch_sub(1, std::memory_order_release);
    }
  }
}

void end_round(Pool* p) {
  p->gate.fetch_or(closed, std::memory_order_relaxed);
  for (int i = 0; p->gate.load(std::memory_order_acquire) != closed; ++i) {
    if (i < spins) pause();
    else sched_yield();
  }
}

void wake_workers(Pool* p) {
  p->round.fetch_add(1, std::memory_order_release);
  p->round.notify_all();
}

// A child of fork has no workers, and a lock that nobody will release: it starts afresh with one thread.
void after_fork() { pool = new Pool; }

const int fork_handler = pthread_atfork(nullptr, nullptr, after_fork);

}  // namespace

Exclusive::Exclusive() { pool->busy.lock(); }
Exclusive::~Exclusive() { pool->busy.unlock(); }

void run(int64_t n_tasks, void (*task)(void*, int64_t), void* context) {
  Exclusive lock;
  Pool* p = pool;
  if (p->workers.empty() || n_tasks < 2) {
    for (int64_t index = 0; index < n_tasks; ++index) task(context, index);
    return;
  }
  p->n_tasks = n_tasks;
  p->task = task;
  p->context = context;
  p->next.store(0, std::memory_order_relaxed);
  p->gate.store(0, std::memory_order_release);
  wake_workers(p);
  take_tasks(p);
  end_round(p);
}

void set_threads(int32_t n_threads) {
  Exclusive lock;
  Pool* p = pool;
  const int32_t wanted = n_threads < 1 ? 0 : (n_threads > max_threads ? max_threads : n_threads) - 1;
  if (static_cast<int32_t>(p->workers.size()) == wanted) return;
  p->ending = true;
  wake_workers(p);
  for (const pthread_t worker : p->workers) pthread_join(worker, nullptr);
  p->workers.clear();
  p->ending = false;
  for (int32_t i = 0; i < wanted; ++i) {
    Start* start = new Start{p, p->round.load()};
    pthread_t worker;
    if (pthread_create(&worker, nullptr, work, start) != 0) {
      delete start;
      return;  // the system grants no more threads: the work is the same on fewer
    }
    p->workers.push_back(worker);
  }
}

int32_t n_threads() {
  Exclusive lock;
  return static_cast<int32_t>(pool->workers.size()) + 1;
}

void* workspace(int64_t bytes, Workspace which) {
  auto& kept = pool->workspaces[static_cast<int>(which)];
  if (bytes > kept.bytes) {
    std::free(kept.memory);
    kept.bytes = (bytes + 63) / 64 * 64;
    kept.memory = std::aligned_alloc(64, static_cast<size_t>(kept.bytes));
    if (kept.memory == nullptr) kept.bytes = 0;
  }
  return kept.memory;
}

}  // namespace earthshine
