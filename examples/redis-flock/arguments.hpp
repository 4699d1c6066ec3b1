// The command line of redis-flock: its options, its manual, and what it refuses.
#pragma once

#include "client_name.hpp"

#include <CLI/CLI.hpp>

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <fstream>

constexpr const char* manual =
    R"(A DURATION is a number and its unit: 500ms, 1.5s, 1m, 2h. Without a unit it is in seconds.

The lease is renewed while the command runs. When it can't be, the command's process group gets SIGTERM as long before
the lease's end as --kill-after says, and SIGKILL at its end; when it is lost without warning, because the key was
deleted, SIGTERM at once and SIGKILL after that time. The lock is released when the command itself has ended, whatever
it has left behind. SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1 and SIGUSR2 are passed on to the group; before there is
a command they end the wait. A command that SIGINT, SIGQUIT, SIGTERM or SIGHUP killed ends redis-flock by that signal
as well, so that ^C ends a script. In the foreground of a terminal the command has the terminal. ^Z stops neither.

The command finds the key in REDISLOCK_KEY, and the lease's token, which proves ownership, in REDISLOCK_TOKEN; and in
the variable that --fence-env names the number of this grant, which is greater than that of every earlier one: a
resource that refuses smaller numbers than it has seen is safe from a command that goes on for too long.

As flock(1): -n, -w, -E, -c and --verbose, and it says nothing where somebody else has the lock. Unlike flock(1):
  - there is no file and no descriptor: --key is what is locked, on all machines, and the command follows --
  - there are no shared locks
  - a conflict is status 75 (-E 1: as flock), and a command that is not found 127
  - the lock ends with the command, though it may have left processes behind; and with redis-flock
  - a lost lease ends the command

Exit status: that of the command, 128+N if signal N killed it; or else
   64  the arguments are wrong
   69  no server answers, or it refuses; with --check: one at least
   71  the system refuses, a process for instance
   75  the key is held by somebody else: not acquired in time, see -E; with --status: held (and 0: free, or a table);
       with --force-unlock: by another token
   79  the lease was lost before the command had ended, whatever became of the command
  126  the command can't be executed
  127  the command was not found
128+N  signal N ended the wait for the lock

Not covered: processes that leave the command's process group, or become another user's, as by sudo: they can't be
ended; a redis-flock that is stopped (SIGSTOP), which can end nothing until it goes on; a redis-flock that is killed
(SIGKILL) takes the command with it, but not the command's children, nor a command that is setuid; the key then goes
with its ttl.)";

/// What is wrong with it; empty: nothing.
inline std::string objection(const std::string& text) {
    std::istringstream in{text};
    Duration duration;
    return in >> duration && in.peek() == EOF ? ""
                                              : '"' + text + "\" is no number of ms, s, m or h, such as 500ms or 1.5s";
}

/// Whatever is no option may be a URL with a password.
inline std::string shown(const std::string& text) {
    return text.find_first_of(":@") == text.npos ? '"' + text + '"'
                                                 : "what is not shown here, for it may hold a password,";
}

inline std::string no_name(const std::string& text) {
    const auto fits = [](unsigned char c) { return std::isalnum(c) || c == '_'; };
    const bool is_name = !text.empty() && !std::isdigit(static_cast<unsigned char>(text[0])) &&
                         std::all_of(text.begin(), text.end(), fits);
    return is_name ? "" : '"' + redislock::detail::printable(text) + "\" can't be the name of a variable";
}

/// Between white space; what begins with a # goes to the end of its line.
inline void add_urls(std::istream& in, const std::string& where, Settings& settings) {
    if (!in) throw CLI::ValidationError{where, "it can't be read: " + std::string{std::strerror(errno)}};
    for (std::string url; in >> url;)
        if (url[0] != '#')
            settings.urls.push_back(url);
        else
            std::getline(in, url);
    if (settings.urls.empty()) throw CLI::ValidationError{where, "there is no URL in it"};
    settings.urls_from = where;
}

class Arguments {
public:
    explicit Arguments(Settings& settings) : settings_{settings} {
        app_.get_formatter()->label("OPTIONS", "OPTION]... -- COMMAND [ARGUMENT"); // in the usage
        app_.footer(manual);
        app_.allow_extras(); // for a message of ours
        app_.failure_message([](const CLI::App*, const CLI::Error& error) {
            return "redis-flock: " + std::string{error.what()} + "; --help tells the rest\n";
        });
        app_.set_version_flag("--version", "redis-flock " + std::to_string(REDISLOCK_VERSION_MAJOR) + '.' +
                                               std::to_string(REDISLOCK_VERSION_MINOR) + '.' +
                                               std::to_string(REDISLOCK_VERSION_PATCH));
        add_what_to_lock();
        add_when_to_give_up();
        add_servers();
        add_tls();
        add_looks();
        for (const char* name : {"--ttl", "--wait", "--kill-after", "--restart-delay", "--request-timeout",
                                 "--retry-for", "--max-hold", "--watch"})
            app_.get_option(name)->check(objection)->type_name("DURATION");
    }

    /// Returns the exit status where that is all: for help, and for a mistake, of which it tells.
    std::optional<int> parse(int argc, char** argv, bool has_command) try {
        app_.parse(argc, argv);
        if (const auto rest = app_.remaining(); !rest.empty())
            throw CLI::ValidationError{
                rest[0].starts_with('-')
                    ? "there is no option " + redislock::detail::printable(rest[0].substr(0, rest[0].find('=')))
                    : shown(rest[0]) + " is no option; the key follows --key, and the command follows --"};
        if (settings_.keep && !settings_.wait) settings_.nonblock = true;
        check_looks();
        check_command(has_command);
        if (settings_.grace() > settings_.ttl.span / 2)
            throw CLI::ValidationError{"--kill-after", "at most half of the ttl"};
        find_urls();
        if (app_.get_option("--client-name")->empty()) settings_.server.client_name = client_name(settings_);
        return {};
    } catch (const CLI::ParseError& error) {
        return app_.exit(error) == 0 ? 0 : usage;
    }

private:
    void add_what_to_lock() {
        app_.add_option("--key", settings_.key, "what to lock; required")->type_name("KEY");
        app_.add_option("--ttl", settings_.ttl, "how long the lock outlives a dead redis-flock (default 30s)");
        app_.add_option("-c,--command", settings_.shell_command,
                        "run this by the shell ($SHELL, or else /bin/sh), in place of the COMMAND")
            ->type_name("STRING");
        app_.add_flag("--keep", settings_.keep,
                      "do not renew the lock, and after a command that succeeds leave it to its ttl: so it runs at "
                      "most once in that time. The command has to end before five sixths of the ttl, and the ttl is to "
                      "be some seconds shorter than the time between two runs. Who finds it locked does not wait, but "
                      "with --wait");
        app_.add_option("--kill-after", settings_.kill_after,
                        "from SIGTERM to SIGKILL, if the lease is lost (default a sixth of the ttl, at most half)");
        app_.add_option("--max-hold", settings_.max_hold,
                        "renew the lease for so long at most: a command that hangs is ended then");
        app_.add_option("--fence-env", settings_.fence_env, "the environment variable for the number of this grant")
            ->check(no_name)
            ->type_name("NAME");
        app_.add_option("--min-replicas", settings_.min_replicas, "how many replicas must have the lock (default 0)")
            ->type_name("COUNT");
    }

    void add_when_to_give_up() {
        const auto wait =
            app_.add_option("-w,--wait,--timeout", settings_.wait,
                            "how long to wait for the lock; 0: ask once (default: for ever, but see --retry-for)");
        app_.add_flag("-n,--nonblock", settings_.nonblock, "the same as --wait 0")->excludes(wait);
        app_.add_option("-E,--conflict-exit-code", settings_.conflict_status,
                        "the exit status where the lock was not acquired in time (default 75)")
            ->check(CLI::Range(0, 255))
            ->type_name("STATUS");
        app_.add_option("--request-timeout", settings_.request_timeout,
                        "how long a server may take to answer (default a third of the ttl, 1s at most; with --status "
                        "5s)");
        app_.add_option("--retry-for", settings_.retry_for,
                        "how long a wait rides out an outage (default: as long as --wait says, or else one "
                        "--request-timeout)");
        app_.add_flag("-x,-e,--exclusive,-o,--close", as_always_, "as with flock(1), where this is done in any case");
        const auto quiet =
            app_.add_flag("--quiet", settings_.quiet, "say nothing of what goes wrong; the exit status does");
        app_.add_flag("--verbose", settings_.verbose,
                      "say for whom and how long it waits, what is wrong with a server, and when the lock is released")
            ->excludes(quiet);
    }

    void add_servers() {
        const auto url = app_.add_option("--url", settings_.urls,
                                         "the server (default: what REDIS_URL says); given several times: a majority "
                                         "of 3, 5, ... servers that know nothing of one another")
                             ->type_name("URL")
                             ->allow_extra_args(false);
        app_.add_option("--url-file", settings_.url_file,
                        "a file with one URL or several, between white space, as REDIS_URL may have them too; others "
                        "can't read it as they can a command line. Lines that begin with a # are comments")
            ->check(CLI::ExistingFile)
            ->type_name("FILE")
            ->excludes(url);
        app_.add_option("--client-name", settings_.server.client_name,
                        "what CLIENT LIST shows (default redis-flock:HOST:PID:KEY)")
            ->type_name("NAME");
        app_.add_flag("--cluster", settings_.is_cluster,
                      "the URL is any node of a Redis Cluster; several: for when one is gone");
        app_.add_option("--sentinel-user", settings_.server.sentinel.credentials.user,
                        "the user for the sentinels of a redis+sentinel://host,host/service (default: none)")
            ->type_name("NAME")
            ->envname("REDIS_SENTINEL_USER");
        app_.add_option("--sentinel-password", settings_.server.sentinel.credentials.password,
                        "their password; others can read the command line, and not the variable")
            ->type_name("PASSWORD")
            ->envname("REDIS_SENTINEL_PASSWORD");
        app_.add_option("--restart-delay", settings_.restart_delay,
                        "for so long a server that has restarted, or was promoted, grants nothing (default 0ms)");
    }

    void add_tls() {
        redislock::TlsOptions& tls = settings_.server.tls;
        app_.add_flag("--tls", settings_.uses_tls, "by TLS, as with rediss:// in the URL");
        app_.add_option("--cacert", tls.ca_file, "the authorities to trust, in PEM (default: the system's)");
        app_.add_option("--cacertdir", tls.ca_folder, "the same, a folder of hashed names");
        app_.add_option("--cert", tls.certificate, "our certificate, for a server that asks for one");
        app_.add_option("--cert-key", tls.key, "its key (default: in the same file)");
        app_.add_option("--sni", tls.server_name, "the name in the server's certificate (default: the URL's host)");
        for (const char* name : {"--cacert", "--cert", "--cert-key"}) app_.get_option(name)->type_name("FILE");
        app_.get_option("--cacertdir")->type_name("FOLDER");
        app_.get_option("--sni")->type_name("NAME");
        app_.add_flag_callback(
            "--insecure", [&tls] { tls.verify = redislock::Verify::none; }, "do not verify the server's certificate");
    }

    void add_looks() {
        app_.add_flag("--status", settings_.status,
                      "only tell whether the key is held, by which token, and which redis-flocks have to do with it");
        app_.add_option("--watch", settings_.watch,
                        "with --status: a table, so often: who holds the key, for how long yet, whether somebody "
                        "waits, and at how many servers");
        app_.add_option("--pattern", settings_.pattern,
                        "with --status: of all keys that are like this, such as 'jobs:*'; it walks over all that the "
                        "server has")
            ->type_name("GLOB");
        app_.add_option("--force-unlock", settings_.token,
                        "only delete the key, if it holds this token, which --status tells; the holder hears of it at "
                        "its next renewal: stop it first. Tells what became of it")
            ->check([](const std::string& text) {
                return redislock::Token::from_hex(text) ? "" : '"' + text + "\" is no token of 32 hexadecimal digits";
            })
            ->type_name("TOKEN");
        app_.add_flag("--check", settings_.check,
                      "only tell whether each server is fit for locks on keys like this one, and what it lacks");
    }

    void check_looks() const {
        const bool has_key = !app_.get_option("--key")->empty();
        if (!has_key && settings_.pattern.empty())
            throw CLI::RequiredError{settings_.status ? "--key or --pattern" : "--key"};
        if (has_key && !settings_.pattern.empty()) throw CLI::ValidationError{"--pattern", "not with --key"};
        if (!settings_.status && (settings_.watch || !settings_.pattern.empty()))
            throw CLI::RequiredError{"--status, for --watch and --pattern,"};
        if (settings_.watch && settings_.watch->span < Millis{100})
            throw CLI::ValidationError{"--watch", "at least 100ms"};
        if (settings_.watch && settings_.quiet) throw CLI::ValidationError{"--watch", "not with --quiet"};
        if (settings_.is_cluster && !settings_.pattern.empty())
            throw CLI::ValidationError{"--pattern", "not with --cluster, whose nodes have a part of the keys each"};
        if (settings_.status + settings_.check + !settings_.token.empty() > 1)
            throw CLI::ValidationError{"--status, --check, --force-unlock", "one of them at a time"};
    }

    void check_command(bool has_command) const {
        const bool only_tells = settings_.status || settings_.check || !settings_.token.empty();
        const bool has_shell = !app_.get_option("--command")->empty();
        if (has_shell && has_command) throw CLI::ValidationError{"COMMAND", "given twice, also by --command"};
        if (only_tells && (has_shell || has_command))
            throw CLI::ValidationError{"COMMAND", "--status, --check and --force-unlock take none"};
        if (!only_tells && !has_shell && !has_command)
            throw CLI::ValidationError{"COMMAND", "none given; it follows --"};
    }

    void find_urls() {
        if (!settings_.url_file.empty()) {
            std::ifstream file{settings_.url_file};
            add_urls(file, settings_.url_file, settings_);
        } else if (const char* const url = std::getenv("REDIS_URL"); url && settings_.urls.empty()) {
            std::istringstream variable{url};
            add_urls(variable, "REDIS_URL", settings_);
        }
        if (!settings_.is_cluster && settings_.urls.size() > 1 && settings_.urls.size() % 2 == 0)
            throw CLI::ValidationError{"the number of servers is " + std::to_string(settings_.urls.size()) +
                                       ", allowed is an odd one"};
        // Whose machine has a Redis of its own would else have a lock of its own.
        if (settings_.urls.empty())
            throw CLI::ValidationError{"no server is named: by --url, --url-file or REDIS_URL, such as "
                                       "redis://db.example or redis://127.0.0.1:6379"};
    }

    Settings& settings_;
    bool as_always_ = true;
    CLI::App app_{"Runs a command while it holds a lock on a Redis server, a service with sentinels, a cluster, or a "
                  "majority of several servers, which no other client can hold then.",
                  "redis-flock"};
};
