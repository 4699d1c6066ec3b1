/// Child processes of tests, and how processes wait for one another.
#pragma once

#include "catch.hpp"

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <exception>
#include <functional>
#include <utility>

namespace test {

/// Runs in a child process, which says by its exit status whether all was well; leaves without running destructors of
/// ours.
class Child {
public:
    explicit Child(const std::function<bool()>& work) : pid_{::fork()} {
        if (pid_ != 0) return;
        ::prctl(PR_SET_PDEATHSIG, SIGKILL);
        bool well = false;
        try {
            well = work();
        } catch (const std::exception& error) {
            std::fprintf(stderr, "in the child: %s\n", error.what());
        }
        ::_exit(well ? 0 : 1);
    }
    Child(const Child&) = delete;
    Child& operator=(const Child&) = delete;
    ~Child() {
        if (pid_ <= 0) return;
        ::kill(pid_, SIGKILL);
        ::waitpid(pid_, nullptr, 0);
    }
    bool was_well() {
        int status = -1;
        ::waitpid(std::exchange(pid_, 0), &status, 0);
        return WIFEXITED(status) && WEXITSTATUS(status) == 0;
    }
    void signal(int number) const { ::kill(pid_, number); }

private:
    pid_t pid_;
};

/// A word from one process to another.
class Pipe {
public:
    Pipe() { REQUIRE(::pipe2(ends_, O_CLOEXEC) == 0); }
    ~Pipe() {
        ::close(ends_[0]);
        ::close(ends_[1]);
    }
    void say(char word) const { CHECK(::write(ends_[1], &word, 1) == 1); }
    char hear() const {
        char word = 0;
        while (::read(ends_[0], &word, 1) < 0 && errno == EINTR) {
        }
        return word;
    }

private:
    int ends_[2];
};

} // namespace test
