/// The servers that vote, and what is known of each: whether it answers, and where those who wait stand in line.
/// tests/quorum_test.cpp goes red if it is wrong.
#pragma once

#include "../../errors.hpp"
#include "../lease/pending_release.hpp"
#include "../protocol/key_slot.hpp"
#include "../system/clock.hpp"
#include "../system/random.hpp"

#include <algorithm>
#include <atomic>
#include <memory>
#include <optional>
#include <string_view>
#include <vector>

namespace redislock::detail {

/// When a server that did not answer is asked again, and what its trouble is. Of all threads; a vote more or less makes
/// no difference, nor does one who stands in line elsewhere.
struct Health {
    static constexpr TimePoint::duration least = Millis{10}, longest = Millis{1'000};
    std::atomic<TimePoint::rep> rests_until{0}, pause{0}, no_line_until{0};
    std::atomic<Errc> trouble{};

    TimePoint until() const noexcept { return TimePoint{TimePoint::duration{rests_until.load()}}; }
    bool rests(TimePoint now) const noexcept { return now < until(); }
    void failed(TimePoint now) noexcept {
        if (rests(now)) return;
        const TimePoint::duration next{std::clamp(2 * pause.load(), least.count(), longest.count())};
        pause = next.count();
        rests_until = (now + next).time_since_epoch().count();
    }
    void answered() noexcept {
        if (pause.load(std::memory_order_relaxed) != 0) pause = rests_until = 0;
    }
    /// Nobody is to stand in line there, for a while.
    void has_no_line(TimePoint now) noexcept { no_line_until = (now + longest).time_since_epoch().count(); }
    bool is_silent() const noexcept { return pause.load(std::memory_order_relaxed) != 0; }
    bool has_line(TimePoint now) const noexcept {
        return !is_silent() && now.time_since_epoch().count() >= no_line_until;
    }
    void says(Errc what) noexcept {
        if (trouble.load(std::memory_order_relaxed) != what) trouble = what;
    }
};

/// Which server each name leads to, as far as the servers tell: one with two names would have two votes. Thread-safe,
/// without a mutex that a fork might leave locked.
class Identities {
public:
    explicit Identities(std::size_t nodes) : known_(nodes), run_ids_(nodes) {
        if (nodes == 1) known_[0] = true; // there is nothing to be taken for
    }

    bool is_known(std::size_t node) const noexcept { return known_[node].load(std::memory_order_relaxed); }

    /// Empty: it does not tell.
    void heard(std::size_t node, std::string_view run_id) noexcept {
        const std::uint64_t own = run_id.empty() ? 0 : std::hash<std::string_view>{}(run_id);
        run_ids_[node] = own;
        for (std::size_t other = 0; other < run_ids_.size(); ++other)
            if (own != 0 && other != node && run_ids_[other] == own)
                twins_ = static_cast<unsigned>(other * run_ids_.size() + node + 1);
        known_[node] = true;
    }

    /// Two names of one server.
    std::optional<std::pair<std::size_t, std::size_t>> twins() const noexcept {
        const std::size_t both = twins_.load();
        if (both == 0) return std::nullopt;
        return std::pair{(both - 1) / run_ids_.size(), (both - 1) % run_ids_.size()};
    }

private:
    std::vector<std::atomic<bool>> known_;
    std::vector<std::atomic<std::uint64_t>> run_ids_; ///< their hashes; 0: unknown
    std::atomic<unsigned> twins_{0};                  ///< 0: there are none
};

/// The servers that vote, and what is known of each.
template <class Node>
struct NodeSet {
    explicit NodeSet(std::vector<Node*> all) : nodes{std::move(all)}, health(nodes.size()), identities{nodes.size()} {
        for (const Node* node : nodes) {
            std::uint64_t& hash = names_.emplace_back(0);
            for (const char c : std::string{node->name()}) hash = scrambled(hash + 1 + static_cast<unsigned char>(c));
        }
    }

    TimePoint now() const noexcept { return nodes.front()->now(); }

    /// Those who rest are left in peace if the others are a majority.
    bool can_spare_who_rests(TimePoint now) const noexcept {
        const auto resting =
            std::count_if(health.begin(), health.end(), [&](const Health& one) { return one.rests(now); });
        return nodes.size() - static_cast<std::size_t>(resting) > nodes.size() / 2;
    }

    /// Where those who wait for the key stand in line: at the first of those that answer, in an order that is the key's
    /// and the same for all clients who give a server the same name (rendezvous hashing, Thaler and Ravishankar 1998).
    std::optional<std::size_t> line_of(std::string_view key, TimePoint now) const noexcept {
        std::optional<std::size_t> first;
        std::uint64_t highest = 0;
        const std::uint64_t slot = hash_slot(key);
        for (std::size_t n = 0; n < nodes.size(); ++n) {
            const std::uint64_t rank = scrambled(slot ^ names_[n]);
            if (!health[n].has_line(now) || !nodes[n]->has_line() || (first && rank <= highest)) continue;
            first = n;
            highest = rank;
        }
        return first;
    }

    /// Lets a connection to the server go on, and notes whether it answers.
    template <class Link>
    void advance(Link& link, std::size_t node, TimePoint now) {
        const std::size_t owed = link.owed();
        if (owed == 0) return;
        link.advance(now);
        if (link.is_closed() || link.in_doubt())
            health[node].failed(now);
        else if (link.owed() < owed)
            health[node].answered();
    }

    /// What an answer says of the server that has given it: what the trouble is with it, if it says nothing of the key.
    Errc heard(std::size_t node, Answer& answer) {
        if (!answer.is_busy()) locate(answer.why, *nodes[node]);
        const bool is_ours = answer.why.code.category() == category();
        Errc trouble = is_ours ? Errc{answer.why.code.value()} : Errc::unreachable; // no thread, for instance
        if (answer.is_about_the_key() || !answer.why) trouble = Errc{};
        health[node].says(trouble);
        return trouble;
    }

    /// Servers that may not carry a release out are asked for it by their own workers. Where there is no memory, or no
    /// thread, the key goes with its ttl.
    void hand_over(Nodes to, const Request& release) const noexcept {
        for (std::size_t n = 0; n < nodes.size(); ++n)
            if (to >> n & 1) hand_over_to(n, release);
    }

    const std::vector<Node*> nodes;
    std::vector<Health> health;
    Identities identities;

private:
    void hand_over_to(std::size_t node, const Request& release) const noexcept try {
        const TimePoint time = now();
        if constexpr (requires(std::shared_ptr<WorkerTask> task) { nodes[node]->keep(task, time); }) {
            Request own = release;
            own.was_granted = false; // by the server itself, which counts those
            const Options options{.ttl = release.ttl};
            nodes[node]->keep(std::make_shared<PendingRelease>(std::move(own), options, time), time);
        }
    } catch (...) {
    }

    std::vector<std::uint64_t> names_{}; ///< hashes
};

} // namespace redislock::detail
