// Runs CUDA kernels on the CPU, one thread at a time, and checks what they do with memory.
//
// Threads: a fibre runs thread after thread of a block. Where one meets a barrier, its fibre is laid aside and a fresh
// one goes on with the next thread; once all wait, they go on in turn. A kernel without barriers is a plain loop.
//
// Memory: g++ -fsanitize=thread calls a hook before every access (the runtime library of that name is not linked; the
// hooks are here). A shadow holds for each element who wrote and who read it last. Two accesses by different threads,
// one of them a write, are a race unless a barrier of their block or the end of a launch stands between them, whatever
// the order they happen to run in here. An access that no argument, shared variable or local one owns is out of bounds.
// Cases of more than some 64 MiB have no shadow but for shared memory: it would be four times their size, and slow.
#include "host.h"

#include <setjmp.h>
#include <stdint.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <vector>

namespace {

enum Kind { NONE, OUT_OF_BOUNDS, RACE, UNINITIALISED, BARRIER, INDEX, MISALIGNED };

struct Source {  // a place as the index and alignment checks give it
    const char *file;
    uint32_t line, column;
};

}  // namespace

extern "C" {

// What went wrong first. `at` and `other_at` are code addresses from the start of the library, 0 for none; `place` is
// known without them. `value`: an index, or the address from the start of region `region` (-1: none is near);
// `count`: bytes of the access, or threads at the barrier.
struct host_fault {
    int32_t kind, writes, other_writes, region, count;
    uint32_t at, other_at, thread, other_thread, block[3];
    int64_t value;
    Source place, other_place;
};

// Memory that kernels may use. `fresh`: it holds nothing that may be read before it is written. `shift`: elements of
// 1 << shift bytes are told apart.
struct host_region {
    uintptr_t begin, size;
    uint32_t fresh, shift;
};

host_geometry host_now;
host_fault host_found;
}

namespace {

struct Stamp {  // who touched an element last: barriers counted since the start, thread, place in the code
    uint64_t epoch : 32, thread : 11, at : 21;
};
struct Touched {
    Stamp write, read;
};
struct Region {
    uintptr_t begin, size;
    bool fresh;
    uint32_t shift;
    Touched *shadow;
};

constexpr uint32_t SEVERAL = 2047;  // in Stamp.thread: more than one
constexpr size_t STACK = 1 << 16;   // bytes of a fibre's stack, with an unmapped page below
constexpr size_t SHADOWS = 18 << 20;        // elements that have a shadow, of 16 bytes each
constexpr size_t SHARED_SHADOWS = 1 << 19;  // of them, for 1 MiB of shared memory

struct Fibre {
    char *stack;
    jmp_buf place;
    bool begun;      // `place` is inside it
    uint32_t thread;
    host_dim3 index;
    Source barrier;  // where it waits
};

constexpr size_t PLACES = 1 << 12;

std::vector<Region> regions(1);  // the first is the shared memory of the block
size_t nearest = 0;              // the region that was used last
uint32_t usual[PLACES];          // by place in the code, the region that was used there last: mostly the next one too
Touched *shadow = nullptr;
uint32_t epoch = 0, case_begin = 0, launch_begin = 0, block_begin = 0;

jmp_buf scheduler;
std::vector<Fibre *> idle;
std::vector<Fibre *> waiting;
Fibre *running = nullptr;
ucontext_t start_place;

uint32_t next_thread, thread_count;
void (*thread_body)(void *);
void *thread_closure;
uintptr_t image;

[[noreturn]] void fail(Kind kind) {
    host_found.kind = kind;
    host_found.thread = running->thread;
    host_found.block[0] = host_now.block.x;
    host_found.block[1] = host_now.block.y;
    host_found.block[2] = host_now.block.z;
    _longjmp(scheduler, 2);
}

// ---- memory ---------------------------------------------------------------------------------------------------------

Region *region_of(uintptr_t address) {
    for (size_t i = 0; i < regions.size(); i++) {
        if (address - regions[i].begin < regions[i].size) {
            nearest = i;
            return &regions[i];
        }
    }
    return nullptr;
}

[[noreturn]] void out_of_bounds(uintptr_t address, size_t size, bool writes, uint32_t at) {
    host_found.region = -1;
    uintptr_t least = 1 << 20;  // farther from every region than this it is near none
    for (size_t i = 1; i < regions.size(); i++) {
        const uintptr_t before = regions[i].begin - address, after = address - (regions[i].begin + regions[i].size);
        const uintptr_t distance = address < regions[i].begin ? before : after;
        if (distance < least) {
            least = distance;
            host_found.region = (int32_t)i - 1;
            host_found.value = (int64_t)(address - regions[i].begin);
        }
    }
    host_found.at = at;
    host_found.count = (int32_t)size;
    host_found.writes = writes;
    fail(OUT_OF_BOUNDS);
}

[[noreturn]] void conflict(Stamp other, bool other_writes, bool writes, uint32_t at) {
    host_found.at = at;
    host_found.other_at = other.at;
    host_found.other_thread = other.thread;
    host_found.other_writes = other_writes;
    host_found.writes = writes;
    host_found.region = (int32_t)nearest - 1;
    host_found.count = other.epoch < block_begin;  // in another block
    fail(RACE);
}

bool concurrent(Stamp stamp) {
    if (stamp.epoch >= block_begin) {
        return stamp.epoch == epoch && stamp.thread != running->thread;
    }
    return stamp.epoch >= launch_begin && nearest != 0;
}

void look(Region *region, Touched *touched, bool writes, uint32_t at) {
    const Stamp now = {epoch, running->thread, at};
    if (concurrent(touched->write)) {
        conflict(touched->write, true, writes, at);
    }
    if (writes) {
        if (concurrent(touched->read)) {
            conflict(touched->read, false, true, at);
        }
        touched->write = now;
        return;
    }
    if (region->fresh && touched->write.epoch < (nearest == 0 ? block_begin : case_begin)) {
        host_found.at = at;
        host_found.region = (int32_t)nearest - 1;
        host_found.writes = 0;
        fail(UNINITIALISED);
    }
    const Stamp before = touched->read;
    if (before.epoch == epoch && before.thread != running->thread) {
        touched->read.thread = SEVERAL;
    } else if (before.epoch < launch_begin || before.epoch >= block_begin || nearest == 0) {
        touched->read = now;  // a reader in an earlier block of the launch is kept: it excludes every later writer
    }
}

void access(void *pointer, size_t size, bool writes, void *from) {
    if (running == nullptr) {
        return;
    }
    const uintptr_t address = (uintptr_t)pointer;
    const bool local = address - (uintptr_t)running->stack < STACK;
    const bool geometry = address - (uintptr_t)&host_now < sizeof host_now;
    if (local || geometry) {
        return;
    }
    const uint32_t at = (uint32_t)((uintptr_t)from - image);
    uint32_t &here = usual[at % PLACES];
    Region *region = &regions[here];
    nearest = here;
    if (address - region->begin >= region->size) {
        region = region_of(address);
        if (region == nullptr) {
            out_of_bounds(address, size, writes, at);
        }
        here = (uint32_t)nearest;
    }
    const uintptr_t first = address - region->begin, last = first + size - 1;
    if (last >= region->size) {
        out_of_bounds(address, size, writes, at);
    }
    for (uintptr_t element = first >> region->shift; region->shadow && element <= last >> region->shift; element++) {
        look(region, &region->shadow[element], writes, at);
    }
}

// ---- threads --------------------------------------------------------------------------------------------------------

void run_threads() {
    Fibre *self = running;
    while (true) {
        while (next_thread < thread_count) {
            const uint32_t thread = next_thread++;
            const host_dim3 size = host_now.threads;
            self->thread = thread;
            self->index = {thread % size.x, thread / size.x % size.y, thread / (size.x * size.y)};
            host_now.thread = self->index;
            thread_body(thread_closure);
        }
        idle.push_back(self);
        if (_setjmp(self->place) == 0) {
            _longjmp(scheduler, 1);
        }
    }
}

Fibre *fibre() {
    if (idle.empty()) {
        const size_t page = (size_t)sysconf(_SC_PAGESIZE);
        void *memory = mmap(nullptr, STACK + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        mprotect(memory, page, PROT_NONE);
        idle.push_back(new Fibre());
        idle.back()->stack = (char *)memory + page;
    }
    Fibre *taken = idle.back();
    idle.pop_back();
    return taken;
}

// Run a fibre until it waits at a barrier (1), has no thread left (1), or finds a fault (2).
int resume(Fibre *taken) {
    running = taken;
    const int why = _setjmp(scheduler);
    if (why != 0) {
        return why;
    }
    if (taken->begun) {
        host_now.thread = taken->index;
        _longjmp(taken->place, 1);
    }
    taken->begun = true;
    getcontext(&start_place);
    start_place.uc_stack.ss_sp = taken->stack;
    start_place.uc_stack.ss_size = STACK;
    start_place.uc_link = nullptr;
    makecontext(&start_place, run_threads, 0);
    setcontext(&start_place);
    return 2;
}

void forget(std::vector<Fibre *> &fibres) {
    for (Fibre *left : fibres) {
        left->begun = false;
        idle.push_back(left);
    }
    fibres.clear();
}

bool one_barrier(const std::vector<Fibre *> &there) {
    const Source first = there[0]->barrier;
    host_found.place = first;
    host_found.count = (int32_t)there.size();
    for (Fibre *other : there) {
        const bool one_file = other->barrier.file == first.file || strcmp(other->barrier.file, first.file) == 0;
        if (other->barrier.line != first.line || !one_file) {
            host_found.other_place = other->barrier;
            return false;
        }
    }
    return there.size() == thread_count;
}

bool run_block() {
    next_thread = 0;
    block_begin = ++epoch;
    while (next_thread < thread_count) {
        if (resume(fibre()) == 2) {
            return false;
        }
    }
    while (!waiting.empty()) {
        std::vector<Fibre *> there;
        there.swap(waiting);
        if (!one_barrier(there)) {
            running = there[0];
            host_found.kind = BARRIER;
            host_found.block[0] = host_now.block.x;
            host_found.block[1] = host_now.block.y;
            host_found.block[2] = host_now.block.z;
            forget(there);
            return false;
        }
        epoch++;
        for (size_t i = 0; i < there.size(); i++) {
            if (resume(there[i]) == 2) {
                there.erase(there.begin(), there.begin() + (long)i + 1);
                forget(there);
                return false;
            }
        }
    }
    return true;
}

}  // namespace

extern "C" {

void host_barrier(const char *file, int line) {
    Fibre *self = running;
    self->barrier = {file, (uint32_t)line, 0};
    waiting.push_back(self);
    if (_setjmp(self->place) == 0) {
        _longjmp(scheduler, 1);
    }
}

// Begin a case whose kernels may use these regions. Its name for each is its place in the list.
void host_case(const host_region *given, int count) {
    if (shadow == nullptr || epoch > UINT32_MAX / 2) {  // the first case, or stamps run out: begin with zeros
        if (shadow != nullptr) {
            munmap(shadow, SHADOWS * sizeof(Touched));
        }
        const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
        shadow = (Touched *)mmap(nullptr, SHADOWS * sizeof(Touched), PROT_READ | PROT_WRITE, flags, -1, 0);
        epoch = 0;
    }
    regions.resize(1);
    regions[0] = {0, 0, true, 1, shadow};
    size_t used = SHARED_SHADOWS;
    for (int i = 0; i < count; i++) {
        regions.push_back({given[i].begin, given[i].size, given[i].fresh != 0, given[i].shift, shadow + used});
        used += (given[i].size >> given[i].shift) + 1;
    }
    for (size_t i = 1; i < regions.size() && used > SHADOWS; i++) {
        regions[i].shadow = nullptr;
    }
    nearest = 0;
    memset(usual, 0, sizeof usual);
    case_begin = ++epoch;
}

// Run a kernel on a grid: blocks x, y, z and threads x, y, z of a block. 0, or 1 where `host_found` says what is wrong.
int host_run(const unsigned int *geometry, void (*thread)(void *), void *closure, char *shared, size_t shared_size,
             const char *library) {
    memset(&host_found, 0, sizeof host_found);
    host_now.blocks = {geometry[0], geometry[1], geometry[2]};
    host_now.threads = {geometry[3], geometry[4], geometry[5]};
    thread_count = geometry[3] * geometry[4] * geometry[5];
    thread_body = thread;
    thread_closure = closure;
    image = (uintptr_t)library;
    regions[0].begin = (uintptr_t)shared;
    regions[0].size = shared_size;
    launch_begin = epoch + 1;
    bool good = true;
    for (unsigned int z = 0; good && z < geometry[2]; z++) {
        for (unsigned int y = 0; good && y < geometry[1]; y++) {
            for (unsigned int x = 0; good && x < geometry[0]; x++) {
                host_now.block = {x, y, z};
                if (shared_size > 0) {
                    memset(shared, 0xFF, shared_size);
                }
                good = run_block();
            }
        }
    }
    if (!good) {
        running->begun = false;  // it is inside a kernel that is given up
        if (host_found.kind != BARRIER) {
            idle.push_back(running);
        }
        forget(waiting);
    }
    running = nullptr;
    return good ? 0 : 1;
}

// The hooks of g++ -fsanitize=thread.
#define HOOKS(size)                                                                                          \
    void __tsan_read##size(void *at) { access(at, size, false, __builtin_return_address(0)); }               \
    void __tsan_write##size(void *at) { access(at, size, true, __builtin_return_address(0)); }               \
    void __tsan_unaligned_read##size(void *at) { access(at, size, false, __builtin_return_address(0)); }     \
    void __tsan_unaligned_write##size(void *at) { access(at, size, true, __builtin_return_address(0)); }
HOOKS(1)
HOOKS(2)
HOOKS(4)
HOOKS(8)
HOOKS(16)
void __tsan_read_range(void *at, unsigned long size) { access(at, size, false, __builtin_return_address(0)); }
void __tsan_write_range(void *at, unsigned long size) { access(at, size, true, __builtin_return_address(0)); }
void __tsan_init() {}
void __tsan_func_entry(void *) {}
void __tsan_func_exit() {}

// The handlers of g++ -fsanitize=bounds,alignment; the first member of what they get is the place in the source.
void __ubsan_handle_out_of_bounds(Source *place, uintptr_t index) {
    host_found.place = *place;
    host_found.value = (int64_t)index;
    fail(INDEX);
}
void __ubsan_handle_type_mismatch_v1(Source *place, uintptr_t) {
    host_found.place = *place;
    fail(MISALIGNED);
}
}
