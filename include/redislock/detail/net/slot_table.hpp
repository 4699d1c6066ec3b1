/// The nodes of a cluster that are known, and which of them has which slot. It asks nobody: it is told.
/// tests/cluster_route_test.cpp goes red if it is wrong.
#pragma once

#include "../../redis_options.hpp"
#include "../protocol/key_slot.hpp"
#include "../system/per_process.hpp"
#include "endpoint.hpp"

#include <algorithm>

namespace redislock::detail {

/// One node. Node is made from an Address and RedisOptions, as a Redis is.
template <class Node>
struct ClusterNode {
    ClusterNode(const Address& where, const RedisOptions& how, bool is_one_to_begin_with)
        : address{where}, is_seed{is_one_to_begin_with}, node{where, how} {}

    const Address address;
    const bool is_seed;
    Node node;
    std::atomic<bool> is_doubted{false}; ///< its last answer was trouble: it may be dead, or cut off

    /// Written only where that is news, for each request comes here.
    void has_answered() noexcept {
        if (is_doubted.load(std::memory_order_relaxed)) is_doubted = false;
    }
};

/// Thread-safe. A forked child begins anew with the seeds.
template <class Node>
class SlotTable {
public:
    using Known = std::shared_ptr<ClusterNode<Node>>;

    /// `seeds`: one at least; the nodes that are found later are for the first one's user, and by TLS if it is.
    SlotTable(std::vector<Address> seeds, RedisOptions options)
        : seeds_{std::move(seeds)}, options_{std::move(options)} {
        with_state([](State&) {});
    }

    /// For messages.
    std::string seeds_text() const {
        std::string text;
        for (const Address& seed : seeds_) text += (text.empty() ? "" : ",") + seed.text();
        return text;
    }

    /// Who has the slot, as far as is known; null: nobody knows.
    Known owner(unsigned slot) {
        return with_state([&](State& state) { return state.owner(slot); });
    }

    /// Whom to ask where that is not known, or in doubt: who has the slots beside it; anybody who is not in doubt; a
    /// seed, whose name may stand for another one by now; anybody. Null if all are in `tried`.
    Known guess(unsigned slot, const std::vector<Known>& tried) {
        return with_state([&](State& state) {
            const auto is_fit = [&](const Known& one) {
                return one && !one->is_doubted && std::find(tried.begin(), tried.end(), one) == tried.end();
            };
            if (Known beside = state.nearest(slot); is_fit(beside)) return beside;
            if (const auto one = std::find_if(state.nodes.begin(), state.nodes.end(), is_fit); one != state.nodes.end())
                return *one;
            Known last;
            for (const Known& one : state.nodes)
                if (std::find(tried.begin(), tried.end(), one) == tried.end() &&
                    (!last || one->is_seed > last->is_seed))
                    last = one;
            return last;
        });
    }

    /// The node at this address, which may be a new one.
    Known at(const std::string& host, const std::string& port) {
        const auto find = [&](State& state) { return state.find(host, port); };
        if (Known known = with_state(find)) return known;
        Known fresh = make(host, port); // which may read files, and is not done under a mutex
        return with_state([&](State& state) {
            if (Known known = state.find(host, port)) return known;
            if (state.nodes.size() >= most_nodes) state.forget_all_but_seeds();
            state.nodes.push_back(fresh);
            return fresh;
        });
    }

    /// A new one in the place of `old`, for another server may be there: its connections lead to the one before.
    Known renew(const Known& old) {
        Known fresh = std::make_shared<ClusterNode<Node>>(old->address, options_for(old->address), old->is_seed);
        return with_state([&](State& state) {
            const auto place = std::find(state.nodes.begin(), state.nodes.end(), old);
            if (place != state.nodes.end()) return *place = fresh;
            Known current = state.find(old->address.host, old->address.port);
            return current ? current : fresh;
        });
    }

    void remember(unsigned slot, const Known& owner) {
        with_state([&](State& state) {
            const auto place = std::find(state.nodes.begin(), state.nodes.end(), owner);
            if (place != state.nodes.end())
                state.slots[slot] = static_cast<std::uint16_t>(place - state.nodes.begin() + 1);
        });
    }

private:
    static constexpr std::size_t most_nodes = 1'000; ///< beyond, it is begun anew with the seeds

    struct State {
        std::vector<Known> nodes{};
        std::vector<std::uint16_t> slots{}; ///< of each slot, one more than the index of its node; 0: not known

        Known owner(unsigned slot) const { return slots[slot] == 0 ? nullptr : nodes[slots[slot] - 1]; }

        Known nearest(unsigned slot) const {
            for (unsigned away = 0; away < slots.size(); ++away) {
                if (slot >= away && slots[slot - away] != 0) return owner(slot - away);
                if (slot + away < slots.size() && slots[slot + away] != 0) return owner(slot + away);
            }
            return nullptr;
        }

        Known find(const std::string& host, const std::string& port) const {
            for (const Known& one : nodes)
                if (one->address.path.empty() && one->address.host == host && one->address.port == port) return one;
            return nullptr;
        }

        void forget_all_but_seeds() {
            std::erase_if(nodes, [](const Known& one) { return !one->is_seed; });
            std::fill(slots.begin(), slots.end(), std::uint16_t{0});
        }
    };

    template <class Use>
    auto with_state(Use use) {
        auto& [mutex, state] = own_.get();
        const std::lock_guard guard{mutex};
        if (state.nodes.empty()) {
            state.slots.resize(slot_count);
            for (const Address& seed : seeds_)
                state.nodes.push_back(std::make_shared<ClusterNode<Node>>(seed, options_, true));
        }
        return use(state);
    }

    Known make(const std::string& host, const std::string& port) const {
        Address address = seeds_.front();
        address.host = host;
        address.port = port;
        address.path.clear();
        return std::make_shared<ClusterNode<Node>>(address, options_for(address), false);
    }

    /// A node that is announced by its address shows the certificate of the name that all are reached by.
    RedisOptions options_for(const Address& address) const {
        RedisOptions options = options_;
        const Address& seed = seeds_.front();
        if (address.tls && options.tls.server_name.empty() && !is_name(address) && is_name(seed))
            options.tls.server_name = seed.host;
        return options;
    }
    static bool is_name(const Address& address) { return numeric_endpoints(address).empty(); }

    const std::vector<Address> seeds_;
    const RedisOptions options_;
    PerProcess<Guarded<State>> own_;
};

} // namespace redislock::detail
