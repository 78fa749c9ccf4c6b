#include "pool.h"

#include <pthread.h>
#include <sched.h>

#include <atomic>
#include <cstdlib>
#include <mutex>
#include <vector>

namespace earthshine {
namespace {

// Everything a worker touches. It is never freed: workers may outlive the statics of a process that exits.
struct Pool {
  std::recursive_mutex busy;  // held for a whole operation
  std::vector<pthread_t> workers;
  std::atomic<uint32_t> round{0};     // changes when there is work, or when workers should end
  std::atomic<int32_t> unfinished{0};  // workers that have not yet left the current round
  std::atomic<int64_t> next{0};
  int64_t n_tasks = 0;
  void (*task)(void*, int64_t) = nullptr;
  void* context = nullptr;
  bool ending = false;
  void* memory = nullptr;
  int64_t memory_bytes = 0;
};

Pool* pool = new Pool;

// About 50 us at 4 GHz: longer than the gaps between the operations of one step, shorter than a read from disk.
constexpr int spins = 4000;

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
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
    const bool ending = p->ending;
    if (!ending) take_tasks(p);
    p->unfinished.fetch_sub(1, std::memory_order_release);
    if (ending) return nullptr;
  }
}

void wait_for_workers(Pool* p) {
  for (int i = 0; p->unfinished.load(std::memory_order_acquire) != 0; ++i) {
    if (i < spins) pause();
    else sched_yield();
  }
}

void begin_round(Pool* p) {
  p->unfinished.store(static_cast<int32_t>(p->workers.size()), std::memory_order_relaxed);
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
  begin_round(p);
  take_tasks(p);
  wait_for_workers(p);
}

void set_threads(int32_t n_threads) {
  Exclusive lock;
  Pool* p = pool;
  const int32_t wanted = n_threads < 1 ? 0 : (n_threads > max_threads ? max_threads : n_threads) - 1;
  if (static_cast<int32_t>(p->workers.size()) == wanted) return;
  p->ending = true;
  begin_round(p);
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

void* workspace(int64_t bytes) {
  Pool* p = pool;
  if (bytes > p->memory_bytes) {
    std::free(p->memory);
    p->memory_bytes = (bytes + 63) / 64 * 64;
    p->memory = std::aligned_alloc(64, static_cast<size_t>(p->memory_bytes));
    if (p->memory == nullptr) p->memory_bytes = 0;
  }
  return p->memory;
}

}  // namespace earthshine
