// The command that redis-flock runs.
#pragma once

#include "settings.hpp"
#include "signals.hpp"

#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/wait.h>

/// The command, in a process group of its own.
class Command {
public:
    Command(char** words, const sigset_t& mask) {
        good(::pipe2(failure_, O_CLOEXEC));
        ::prctl(PR_SET_CHILD_SUBREAPER, 1); // whom it leaves behind becomes our child: then we see the group's end
        const pid_t parent = ::getpid();
        pid_ = good(::fork());
        if (pid_ == 0) become(words, mask, parent);
        ::close(failure_[1]);
        ::setpgid(pid_, pid_); // here as in the child, for whoever comes first
    }
    Command(const Command&) = delete;
    Command& operator=(const Command&) = delete;
    ~Command() {
        if (running()) signal(SIGKILL), ::waitpid(pid_, nullptr, 0);
        if (::tcgetpgrp(terminal_) == pid_) ::tcsetpgrp(terminal_, ::getpgrp()); // else a shell has it by now
    }

    /// To its whole group. False: the system does not let us, for all that is left there is another user's, as by sudo.
    bool signal(int number) const { return ::kill(-pid_, number) == 0 || errno != EPERM; }

    bool running() const { return !status_; }

    /// Also when the command itself has ended.
    bool group_lives() const {
        pid_t pid = 0;
        while ((pid = ::waitpid(-pid_, nullptr, WNOHANG)) > 0) {
        }
        return pid == 0;
    }

    /// Takes notice of what became of our children.
    void reap(const Settings& settings) {
        int status = 0;
        for (pid_t pid; (pid = ::waitpid(-1, &status, WNOHANG | WUNTRACED)) > 0;) {
            if (pid != pid_) continue;
            const int by = WIFSTOPPED(status) ? WSTOPSIG(status) : 0;
            if (by == 0)
                status_ = status;
            else if (has_terminal_ && by == SIGTSTP)
                signal(SIGCONT); // else nobody could: no shell knows that it is stopped
            else if ((wants_terminal_ = by == SIGTTIN || by == SIGTTOU) && !is_in_foreground())
                settings.say("the command wants the terminal: bring it to the foreground; the lock stays held");
            else if (!wants_terminal_)
                settings.say("the command is stopped by signal " + std::to_string(by) + "; the lock stays held");
        }
    }

    /// Gives it the terminal that it has been stopped for, if we have that. True: we have not yet.
    bool waits_for_terminal() {
        if (!wants_terminal_ || !is_in_foreground()) return wants_terminal_;
        wants_terminal_ = false;
        has_terminal_ = ::tcsetpgrp(terminal_, pid_) == 0;
        signal(SIGCONT);
        return false;
    }

    /// Of the command that has ended: why it never began; 0 if it did.
    int failure() const {
        int error = 0;
        return ::read(failure_[0], &error, sizeof error) > 0 ? error : 0;
    }
    End end() const {
        if (!WIFSIGNALED(*status_)) return {WEXITSTATUS(*status_)};
        const int signal = WTERMSIG(*status_);
        return {by_signal + signal, signal, has_terminal_ && (signal == SIGINT || signal == SIGQUIT)};
    }

private:
    /// Other threads of ours may have held any mutex: here are only calls that a signal handler may make, too.
    [[noreturn]] void become(char** words, const sigset_t& mask, pid_t parent) const {
        ::prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (::getppid() != parent) ::_exit(system_refuses);
        ::setpgid(0, 0);
        if (has_terminal_) ::tcsetpgrp(terminal_, ::getpid());
        ::signal(SIGTSTP, ::signal(SIGTSTP, SIG_IGN)); // a ^Z for the group that it has just left is not for it
        ::pthread_sigmask(SIG_SETMASK, &mask, nullptr);
        ::execvp(words[0], words);
        const int error = errno;
        ::_exit(::write(failure_[1], &error, sizeof error) > 0 ? 127 : 126);
    }

    bool is_in_foreground() const { return ::tcgetpgrp(terminal_) == ::getpgrp(); }

    const int terminal_ = ::open("/dev/tty", O_RDWR | O_CLOEXEC | O_NOCTTY);
    /// Where we have it; and not where we share it with those that we are piped to or from, unless it asks for it.
    bool has_terminal_ = ::isatty(STDIN_FILENO) && ::isatty(STDOUT_FILENO) && is_in_foreground();
    bool wants_terminal_ = false;
    int failure_[2]; ///< from the child: the errno of its exec
    pid_t pid_ = -1;
    std::optional<int> status_{};
};
