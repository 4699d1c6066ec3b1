/// The connections to the servers of a majority that nobody uses at the moment: by which a question is put to all, and
/// by which a turn is waited for at one. tests/quorum_test.cpp and tests/cleanup_test.cpp go red if it is wrong.
#pragma once

#include "../system/per_process.hpp"
#include "place_in_line.hpp"

namespace redislock::detail {

/// Thread-safe. In a forked child it is empty.
template <class Node>
class FanOutPool {
public:
    explicit FanOutPool(NodeSet<Node>& node_set) : node_set_{node_set} {}

    /// The fan-out that a token's acquire is still owed to is the token's alone: its release must not overtake the
    /// acquire. Else the one that was used last, and a new one where there is none.
    std::unique_ptr<FanOut<Node>> take(const Token& token) {
        std::unique_ptr<FanOut<Node>> idle = take_idle(token);
        return idle ? std::move(idle) : std::make_unique<FanOut<Node>>(node_set_);
    }

    /// The same, but null where there is none.
    std::unique_ptr<FanOut<Node>> take_idle(const Token& token) {
        auto& [mutex, idle] = idle_.get();
        const std::lock_guard guard{mutex};
        auto& all = idle.fan_outs;
        auto chosen = std::find_if(all.rbegin(), all.rend(), [&](const auto& one) { return one->is_owed(token); });
        if (unsigned late = 0; chosen == all.rend())
            for (chosen = all.rbegin(); chosen != all.rend() && !is_free(**chosen); ++chosen)
                if (++late > most_late) (*chosen)->suspect_the_silent();
        return chosen == all.rend() ? nullptr : taken(all, std::next(chosen).base());
    }

    /// One that has not `served`, for no majority could be asked over it, is the last to be taken again: where servers
    /// have no room for new connections the others are all that there is.
    void give_back(std::unique_ptr<FanOut<Node>> fan_out, bool served) noexcept try {
        auto& [mutex, idle] = idle_.get();
        const std::lock_guard guard{mutex};
        auto& all = idle.fan_outs;
        const auto free = std::count_if(all.begin(), all.end(), [](const auto& one) { return !one->is_owed(); });
        if (static_cast<std::size_t>(free) < most_idle || fan_out->is_owed())
            all.insert(served ? all.end() : all.begin(), std::move(fan_out));
    } catch (...) { // no room for it: it's closed
    }

    /// Stands in line at that server: see PlaceInLine.
    Answer wait_for_turn(const Request& request, std::size_t at) {
        std::unique_ptr<PlaceInLine<Node>> place = take_place(at);
        const Answer turn = place->wait(request, *this);
        if (place->is_idle()) give_back(std::move(place));
        return turn;
    }

private:
    static constexpr std::size_t most_idle = 16; ///< beside those that still wait for an answer
    static constexpr unsigned most_late = 4;     ///< fan-outs that wait for somebody's answer to an acquire

    struct Idle {
        std::vector<std::unique_ptr<FanOut<Node>>> fan_outs{};
        std::vector<std::unique_ptr<PlaceInLine<Node>>> places{};
    };

    template <class All>
    static auto taken(All& all, typename All::iterator chosen) {
        auto one = std::move(*chosen);
        all.erase(chosen);
        return one;
    }

    std::unique_ptr<PlaceInLine<Node>> take_place(std::size_t at) {
        auto& [mutex, idle] = idle_.get();
        {
            const std::lock_guard guard{mutex};
            const auto is_there = [&](const auto& one) { return one->at() == at; };
            const auto chosen = std::find_if(idle.places.rbegin(), idle.places.rend(), is_there);
            if (chosen != idle.places.rend()) return taken(idle.places, std::next(chosen).base());
        }
        return std::make_unique<PlaceInLine<Node>>(node_set_, at);
    }
    void give_back(std::unique_ptr<PlaceInLine<Node>> place) noexcept try {
        auto& [mutex, idle] = idle_.get();
        const std::lock_guard guard{mutex};
        if (idle.places.size() >= most_idle) idle.places.erase(idle.places.begin()); // it may be where nobody waits
        idle.places.push_back(std::move(place));
    } catch (...) { // as above
    }

    /// Looks, without waiting, whether the answers have come: here, under the mutex, for a release must find the
    /// fan-out of its token.
    static bool is_free(FanOut<Node>& fan_out) {
        if (fan_out.is_owed()) fan_out.advance();
        return !fan_out.is_owed();
    }

    NodeSet<Node>& node_set_;
    PerProcess<Guarded<Idle>> idle_;
};

} // namespace redislock::detail
