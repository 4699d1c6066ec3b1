/// Blocking code of several simulated threads in one real one: each is a fiber, which runs until it waits.
#pragma once

#include <cxxabi.h>
#include <setjmp.h>
#include <ucontext.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

namespace simulation {

/// Work on a stack of its own, which is entered by way of a context, and left and entered again by jumps, for these
/// save no signal mask and make no system call. What the runtime library knows of exceptions being handled belongs to
/// the stack, too.
class Fiber {
public:
    explicit Fiber(std::function<void()> work) : work_{std::move(work)}, stack_{take_stack()} {
        ::getcontext(&entry_);
        entry_.uc_stack.ss_sp = stack_.get();
        entry_.uc_stack.ss_size = stack_size;
        const auto address = reinterpret_cast<std::uintptr_t>(this);
        ::makecontext(&entry_, reinterpret_cast<void (*)()>(&Fiber::run), 2, static_cast<unsigned>(address >> 32),
                      static_cast<unsigned>(address));
    }
    Fiber(const Fiber&) = delete;
    Fiber& operator=(const Fiber&) = delete;
    ~Fiber() { spare_stacks().push_back(std::move(stack_)); }

    bool done() const noexcept { return done_; }

    /// Until it yields, or is done.
    void resume() {
        swap_exceptions();
        enter();
        swap_exceptions();
    }
    [[gnu::noinline]] void yield() {
        if (_setjmp(inside_) == 0) _longjmp(caller_, 1);
    }

private:
    static constexpr std::size_t stack_size = 128 * 1024;
    using Stack = std::unique_ptr<char[]>;

    static std::vector<Stack>& spare_stacks() {
        static std::vector<Stack> stacks;
        return stacks;
    }
    static Stack take_stack() {
        auto& spare = spare_stacks();
        if (spare.empty()) return Stack{new char[stack_size]};
        Stack stack = std::move(spare.back());
        spare.pop_back();
        return stack;
    }

    static void run(unsigned high, unsigned low) {
        auto* self = reinterpret_cast<Fiber*>(static_cast<std::uintptr_t>(high) << 32 | low);
        self->work_();
        self->work_ = nullptr;
        self->done_ = true;
        self->yield();
    }

    [[gnu::noinline]] void enter() {
        if (_setjmp(caller_) != 0) return;
        if (std::exchange(entered_, true)) _longjmp(inside_, 1);
        ::setcontext(&entry_);
    }

    void swap_exceptions() noexcept {
        auto* current = reinterpret_cast<char*>(abi::__cxa_get_globals());
        std::swap_ranges(exceptions_.begin(), exceptions_.end(), current);
    }

    std::function<void()> work_;
    Stack stack_;
    ucontext_t entry_{};
    jmp_buf caller_{}, inside_{};
    bool entered_ = false;
    std::array<char, sizeof(void*) + sizeof(unsigned)> exceptions_{};
    bool done_ = false;
};

} // namespace simulation
