/// Replies: how hiredis hands them over, and what a server's errors mean. What is in here neither sends nor waits.
/// tests/redis_test.cpp goes red if it is wrong.
#pragma once

#include "../../errors.hpp"

#include <hiredis/hiredis.h>

#include <string>
#include <string_view>

namespace redislock::detail {

/// A reply, as far as a lock needs one. Of an array we keep its strings, each behind a line feed.
struct Reply {
    int type = 0;          ///< REDIS_REPLY_STATUS, _ERROR, _INTEGER, _NIL, _STRING or _ARRAY
    long long integer = 0; ///< of an integer
    std::string text{};    ///< of a status, an error, a string or an array: binary

    bool is_error() const noexcept { return type == REDIS_REPLY_ERROR; }
};

/// What follows `name` on its line of INFO's reply, where it ends with a colon; empty where there is no such line.
inline std::string_view field(std::string_view text, std::string_view name) {
    const auto at = text.find("\n" + std::string{name});
    if (at == text.npos) return {};
    text.remove_prefix(at + 1 + name.size());
    return text.substr(0, text.find_first_of("\r\n"));
}

/// How hiredis hands its parse over: straight into one Reply, so that a reply costs no allocation of its own. Nesting
/// and long arrays are refused here, before the parser makes room for them: older releases recurse, or reserve 16 GB.
struct ReplyBuilder {
    static constexpr long long longest_array = 1024;

    /// The reply that `task` is, or an element of. Null, which hiredis takes for out of memory, on failure.
    template <class Fill>
    static void* fill(const redisReadTask* task, Fill&& set) noexcept try {
        if (task->type > REDIS_REPLY_ERROR) return nullptr; // of RESP3, for which nobody asked
        auto* reply = static_cast<Reply*>(task->privdata);
        if (task->parent == nullptr) reply->type = task->type;
        set(*reply, task->parent != nullptr);
        return reply;
    } catch (...) {
        return nullptr;
    }

    static void* string(const redisReadTask* task, char* text, std::size_t size) {
        return fill(task, [&](Reply& reply, bool is_element) {
            if (!is_element) reply.text.clear();
            reply.text.append(is_element ? "\n" : "").append(text, size);
        });
    }
    static void* integer(const redisReadTask* task, long long value) {
        return fill(task, [&](Reply& reply, bool is_element) {
            if (!is_element) reply.integer = value;
        });
    }
    static void* nil(const redisReadTask* task) { // announced as a string or an array without a length
        return fill(task, [](Reply& reply, bool is_element) {
            if (!is_element) reply.type = REDIS_REPLY_NIL;
        });
    }
    template <class Count> // int before hiredis 1.0, std::size_t since
    static void* array(const redisReadTask* task, Count elements) {
        if (task->parent != nullptr || static_cast<long long>(elements) > longest_array) return nullptr;
        return fill(task, [](Reply& reply, bool) { reply.text.clear(); });
    }
    static void keep(void*) {}

    static redisReplyObjectFunctions* functions() {
        static constinit redisReplyObjectFunctions table = [] {
            redisReplyObjectFunctions made{};
            made.createString = string;
            made.createArray = array;
            made.createInteger = integer;
            made.createNil = nil;
            made.freeObject = keep;
            return made;
        }();
        return &table;
    }
};

/// What a server's error reply means, by its first word. Servers before 7.0 wrap the errors of a script's commands, so
/// the word is also looked for inside.
inline Errc meaning(std::string_view error) noexcept {
    struct Row {
        std::string_view word;
        Errc code;
    };
    static constexpr Row words[] = {
        {"OOM", Errc::out_of_memory},
        {"READONLY", Errc::read_only},
        {"LOADING", Errc::loading},
        {"NOAUTH", Errc::auth_required},
        {"WRONGPASS", Errc::auth_failed},
        {"NOPERM", Errc::no_permission},
        {"DENIED", Errc::no_permission},
        {"BUSY", Errc::script_running},
        {"MISCONF", Errc::misconfigured},
        {"MOVED", Errc::moved},
        {"ASK", Errc::moved},
        {"CLUSTERDOWN", Errc::cluster_down},
        {"TRYAGAIN", Errc::cluster_down},
        {"MASTERDOWN", Errc::master_down},
        {"NOREPLICAS", Errc::no_replicas},
        {"WRONGTYPE", Errc::wrong_type},
    };
    static constexpr Row sentences[] = {
        {"max number of clients", Errc::max_clients},
        {"user executing the script can't", Errc::no_permission}, // Redis 7.0; later ones and Valkey:
        {"ACL failure in script", Errc::no_permission},
        {"nknown command", Errc::unsupported},
        {"nknown Redis command", Errc::unsupported},
        {"DB index is out of range", Errc::no_such_db},
        {"SELECT is not allowed", Errc::no_such_db},
    };
    const std::string_view first = error.substr(0, error.find(' '));
    for (const Row& row : words)
        if (first == row.word) return row.code;
    if (first != "ERR") return Errc::server_error;
    for (const Row& row : sentences)
        if (error.find(row.word) != error.npos) return row.code;
    for (const Row& row : words)
        for (auto at = error.find(row.word); at != error.npos; at = error.find(row.word, at + 1))
            if (error[at - 1] == '-' && error.substr(at + row.word.size()).starts_with(' ')) return row.code;
    return Errc::server_error;
}

} // namespace redislock::detail
