/// What a server makes of the three verbs, in a map: its keys, who stands in line for one, and what is yet to arrive.
/// Time comes in as an argument; it waits for nothing, and knows neither clocks nor faults. tests/memory_test.cpp goes
/// red if it is wrong.
#pragma once

#include "../system/timers.hpp"
#include "request.hpp"

#include <deque>
#include <map>
#include <vector>

namespace redislock::detail {

/// Not thread-safe.
class Keyspace {
public:
    struct Entry {
        std::string value;
        TimePoint expiry;
        bool is_string;
    };

    /// A request, when it arrives.
    struct Message {
        Message(const Request& request, Verb what, TimePoint when)
            : arrival{when}, verb{what}, key{request.key}, token{request.token}, ttl{request.ttl},
              replicas{request.replicas}, fencing{request.fencing} {}

        TimePoint arrival;
        Verb verb;
        std::string key;
        Token token;
        Millis ttl;
        unsigned replicas;
        bool fencing;
    };

    /// One whose acquire found the key held, in line for as long as he lives. His turn comes when he is taken out of
    /// it, with an answer.
    class Waiter {
    public:
        Waiter(Keyspace& keys, Message acquire) : message{std::move(acquire)}, line_{keys.line_} {
            line_.push_back(this);
        }
        Waiter(const Waiter&) = delete;
        Waiter& operator=(const Waiter&) = delete;
        ~Waiter() { std::erase(line_, this); }

        Message message;
        std::optional<Answer> answer{};
        Signal turn{};

    private:
        std::vector<Waiter*>& line_;
    };

    std::size_t waiting(std::string_view key) const {
        return static_cast<std::size_t>(std::count_if(
            line_.begin(), line_.end(), [&](const Waiter* waiter) { return waiter->message.key == key; }));
    }

    /// Null if it is free.
    const Entry* find(std::string_view key, TimePoint moment) {
        const auto at = live(key, moment);
        return at != keys_.end() ? &at->second : nullptr;
    }
    void put(std::string key, Entry entry) { keys_[std::move(key)] = std::move(entry); }
    void erase(std::string_view key) {
        if (const auto at = keys_.find(key); at != keys_.end()) keys_.erase(at);
    }

    /// At first there are as many as anyone asks for.
    void set_replicas(unsigned count) noexcept { replicas_ = count; }

    /// As of the moment of its arrival.
    Answer carry_out(const Message& message) {
        const auto at = live(message.key, message.arrival);
        if (message.verb == Verb::acquire) {
            if (at != keys_.end()) return busy(at->second, message.arrival);
            if (message.replicas > replicas_) return {Verdict::no, {Errc::no_replicas, {}}};
            keys_[message.key] = {std::string{message.token.hex()}, message.arrival + message.ttl, true};
            return {.verdict = Verdict::yes, .fencing_token = message.fencing ? ++fences_ : 0};
        }
        if (at == keys_.end()) return {Verdict::no, {Errc::expired, {}}};
        Entry& entry = at->second;
        if (!entry.is_string || entry.value != message.token.hex()) return {Verdict::no, {Errc::stolen, {}}};
        if (message.verb == Verb::release) {
            keys_.erase(at);
            hand_on(message.key, message.arrival);
            return {Verdict::yes};
        }
        const TimePoint expiry = message.arrival + message.ttl;
        entry.expiry = entry.expiry == TimePoint::max() ? expiry : std::max(entry.expiry, expiry);
        if (message.replicas > replicas_) return {Verdict::unknown, {Errc::no_replicas, {}}};
        return {Verdict::yes};
    }

    /// To be carried out when it arrives; of two that arrive together the one sent first is first.
    void send(Message message) {
        const auto after = std::upper_bound(under_way_.begin(), under_way_.end(), message.arrival,
                                            [](TimePoint time, const Message& other) { return time < other.arrival; });
        under_way_.insert(after, std::move(message));
    }
    void carry_out_until(TimePoint moment) {
        for (; !under_way_.empty() && under_way_.front().arrival <= moment; under_way_.pop_front())
            carry_out(under_way_.front());
    }
    TimePoint next_arrival() const noexcept {
        return under_way_.empty() ? TimePoint::max() : under_way_.front().arrival;
    }

    /// The first in line for the key is answered.
    void hand_on(const std::string& key, TimePoint moment) {
        const auto first =
            std::find_if(line_.begin(), line_.end(), [&](const Waiter* waiter) { return waiter->message.key == key; });
        if (first == line_.end()) return;
        Waiter& waiter = **first;
        line_.erase(first);
        waiter.message.arrival = moment;
        waiter.answer = carry_out(waiter.message);
        waiter.answer->queued = true;
        waiter.turn.set();
    }

private:
    using Keys = std::map<std::string, Entry, std::less<>>;

    /// What has expired is as good as gone.
    Keys::iterator live(std::string_view key, TimePoint moment) {
        const auto at = keys_.find(key);
        if (at == keys_.end() || moment < at->second.expiry) return at;
        keys_.erase(at);
        return keys_.end();
    }

    static Answer busy(const Entry& holder, TimePoint moment) {
        if (!holder.is_string) return {Verdict::no, {Errc::wrong_type, {}}};
        if (holder.expiry == TimePoint::max()) return {Verdict::no, {Errc::no_expiry, {}}};
        return {Verdict::no, {Errc::busy, {}}, std::chrono::ceil<Millis>(holder.expiry - moment)};
    }

    Keys keys_;
    std::deque<Message> under_way_;
    std::vector<Waiter*> line_; ///< in the order of arrival
    std::uint64_t fences_ = 0;
    unsigned replicas_ = ~0u;
};

} // namespace redislock::detail
