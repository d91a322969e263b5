// See cuda_runtime_api.h. Not for several host threads at a time.
#include <cuda_runtime.h>
#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <random>
#include <vector>

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace emulation {

int capability_major = 9;

namespace {

constexpr size_t kStack = 128 << 10;
constexpr size_t kSharedBytes = 48 << 10;

struct Barrier {
  int arrived = 0;
  unsigned generation = 0;
};

struct Rendezvous : Barrier {
  uint32_t values[2][32];
};

struct Block {
  uint3 index;
  int rank = 0;  // in its cluster
  std::unique_ptr<char[]> memory{new char[kSharedBytes]};
  size_t used = 0;
  std::map<const char*, size_t> offsets;
  Barrier barrier;
  std::vector<std::map<uint32_t, Rendezvous>> warps;  // by the mask
};

struct Fiber {
  char* stack = nullptr;
  jmp_buf state;
  bool begun = false, done = false;
  const unsigned* waits_for = nullptr;  // a generation to pass
  unsigned generation = 0;
  Block* block = nullptr;
  unsigned thread = 0;
};

std::vector<char*> stacks;
std::vector<Fiber> fibers;
std::vector<Block> blocks;
Barrier cluster;
Fiber* current = nullptr;
jmp_buf scheduler;
ucontext_t entry_context;
const std::function<void()>* body = nullptr;
unsigned order_seed = 0;
long launched = 0;

void begin() {
  Fiber* fiber = current;
  (*body)();
  fiber->done = true;
  _longjmp(scheduler, 1);
}

void resume(Fiber& fiber) {
  current = &fiber;
  threadIdx = {fiber.thread, 0, 0};
  blockIdx = fiber.block->index;
  if (_setjmp(scheduler)) return;
  if (fiber.begun) _longjmp(fiber.state, 1);
  fiber.begun = true;
  getcontext(&entry_context);
  entry_context.uc_stack.ss_sp = fiber.stack;
  entry_context.uc_stack.ss_size = kStack;
  entry_context.uc_link = nullptr;
  makecontext(&entry_context, begin, 0);
  setcontext(&entry_context);
}

// Comes back when the barrier's generation has passed.
void arrive(Barrier& barrier, int expected) {
  if (++barrier.arrived == expected) {
    barrier.arrived = 0;
    ++barrier.generation;
    return;
  }
  current->waits_for = &barrier.generation;
  current->generation = barrier.generation;
  if (_setjmp(current->state) == 0) _longjmp(scheduler, 1);
}

char* stack_of(size_t i) {
  while (stacks.size() <= i) {
    void* p = mmap(nullptr, kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) std::abort();
    stacks.push_back((char*)p);
  }
  return stacks[i];
}

// Runs each of the fibers that can go on, once; returns how many ended, and whether any went on.
size_t run_once(const std::vector<Fiber*>& order, bool* moved) {
  size_t ended = 0;
  for (Fiber* fiber : order) {
    if (fiber->done || (fiber->waits_for && *fiber->waits_for == fiber->generation)) continue;
    fiber->waits_for = nullptr;
    resume(*fiber);
    *moved = true;
    ended += fiber->done;
  }
  return ended;
}

// All threads in turn, or where the order is shuffled, each warp as far as it can go before another: what a barrier
// does not forbid then happens.
void run_all(std::mt19937& random) {
  std::vector<std::vector<Fiber*>> groups(1);
  for (Fiber& fiber : fibers) {
    if (order_seed && fiber.thread % 32 == 0 && !groups.back().empty()) groups.emplace_back();
    groups.back().push_back(&fiber);
  }
  if (order_seed) {
    std::shuffle(groups.begin(), groups.end(), random);
    for (auto& group : groups) std::shuffle(group.begin(), group.end(), random);
  }
  for (size_t left = fibers.size(); left > 0;) {
    bool any = false;
    for (const auto& group : groups) {
      for (bool moved = true; moved;) {
        moved = false;
        left -= run_once(group, &moved);
        any |= moved;
      }
    }
    if (!any) {
      std::fprintf(stderr, "emulation: a barrier or exchange was not reached by all of its threads\n");
      std::abort();
    }
  }
}

void run_cluster(unsigned first, unsigned size, std::mt19937& random) {
  blocks = std::vector<Block>(size);
  fibers = std::vector<Fiber>(size * blockDim.x);
  cluster = Barrier();
  for (unsigned b = 0; b < size; ++b) {
    blocks[b].index = {first + b, 0, 0};
    blocks[b].rank = (int)b;
    blocks[b].warps.resize((blockDim.x + 31) / 32);
    std::memset(blocks[b].memory.get(), 0xff, kSharedBytes);  // NaN: what was not written shows
    for (unsigned t = 0; t < blockDim.x; ++t) {
      Fiber& fiber = fibers[b * blockDim.x + t];
      fiber.stack = stack_of(b * blockDim.x + t);
      fiber.block = &blocks[b];
      fiber.thread = t;
    }
  }
  run_all(random);
}

}  // namespace

cudaError_t launch(const cudaLaunchConfig_t& config, const std::function<void()>& kernel) {
  const unsigned size = config.numAttrs ? config.attrs[0].val.clusterDim.x : 1, grid = config.gridDim.x;
  const bool possible = grid > 0 && config.blockDim.x > 0 && config.blockDim.x <= 1024 && grid % size == 0;
  if (!possible || (size > 1 && capability_major < 9))
    return cudaErrorInvalidConfiguration;
  blockDim = config.blockDim;
  gridDim = config.gridDim;
  body = &kernel;
  ++launched;
  std::mt19937 random(order_seed);
  std::vector<unsigned> order(grid / size);
  for (unsigned i = 0; i < order.size(); ++i) order[i] = i;
  if (order_seed) std::shuffle(order.begin(), order.end(), random);
  for (unsigned i : order) run_cluster(i * size, size, random);
  return cudaSuccess;
}

void* shared(const char* key, size_t size) {
  Block& b = *current->block;
  const auto found = b.offsets.find(key);
  if (found != b.offsets.end()) return b.memory.get() + found->second;
  const size_t offset = (b.used + 15) / 16 * 16;
  b.used = offset + size;
  if (b.used > kSharedBytes) std::abort();
  b.offsets[key] = offset;
  return b.memory.get() + offset;
}

void sync_block() { arrive(current->block->barrier, (int)blockDim.x); }
void sync_cluster() { arrive(cluster, (int)fibers.size()); }
int cluster_rank() { return current->block->rank; }
int lane() { return (int)current->thread % 32; }

void* in_block_of_cluster(void* p, int rank) {
  return blocks[rank].memory.get() + ((char*)p - current->block->memory.get());
}

const uint32_t* exchange(uint32_t mask, uint32_t value) {
  if (!(mask >> lane() & 1)) {
    std::fprintf(stderr, "emulation: a lane that is not in its own mask\n");
    std::abort();
  }
  Rendezvous& r = current->block->warps[current->thread / 32][mask];
  uint32_t* values = r.values[r.generation & 1];
  values[lane()] = value;
  arrive(r, __builtin_popcount(mask));
  return values;
}

}  // namespace emulation

cudaError_t cudaMalloc(void** p, size_t bytes) {
  *p = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
  std::memset(*p, 0xff, bytes);
  return cudaSuccess;
}
cudaError_t cudaFree(void* p) { return std::free(p), cudaSuccess; }
cudaError_t cudaMemset(void* p, int value, size_t bytes) { return std::memset(p, value, bytes), cudaSuccess; }
cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
  return std::memcpy(to, from, bytes), cudaSuccess;
}

extern "C" {
// 0: blocks and threads in their order; any other number shuffles both.
__attribute__((visibility("default"))) void emulation_order(unsigned seed) { emulation::order_seed = seed; }
__attribute__((visibility("default"))) void emulation_capability(int major) { emulation::capability_major = major; }
__attribute__((visibility("default"))) long emulation_launches() { return emulation::launched; }
}
