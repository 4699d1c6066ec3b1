/// A Redis Cluster as a backend. How a node is asked is the Redis' affair, which one the ClusterRoute's; the cluster's
/// topology is never asked for: nodes tell where a key is, and that is remembered. tests/cluster_test.cpp goes red if
/// it is wrong.
#pragma once

#include "check.hpp"
#include "detail/renewal/cluster_port.hpp"

#include <span>

namespace redislock {

/// A Redis Cluster, or a Valkey one. Thread-safe; neither copied nor moved; to be destroyed after its locks, as a Redis
/// is. Nothing is connected until a lock asks.
///
/// A key's node is found by asking any; what it says (MOVED) is remembered by the key's slot. A node that is not there
/// is passed over: another one knows who has taken its place; if none is there, the seeds' names are looked up anew.
/// While a slot is being moved from one node to another, who waits for a key in it polls; else waiters stand in line.
/// A release that is not confirmed is lost where its slot has been moved unknown to us.
///
/// A failover may lose a grant that the replica had not got yet: see Options::min_replicas.
class Cluster {
    using Table = detail::SlotTable<Redis>;

public:
    /// `seed`: the URI of any of its nodes, or a name that stands for some. Its user, its password, and whether it is
    /// by TLS, hold for all nodes. Blocks for nothing. Throws std::system_error: Errc::bad_uri, and Errc::bad_option
    /// for a database other than 0, and for a restart_delay.
    template <std::convertible_to<std::string_view> Uri>
    explicit Cluster(const Uri& seed, RedisOptions options = {})
        : Cluster{std::vector<std::string>{text(seed)}, std::move(options)} {}

    /// Several seeds, for when one is gone: `Cluster cluster{{"redis://a", "redis://b"}}`. What holds for all nodes is
    /// the first one's.
    explicit Cluster(const std::vector<std::string>& seeds, RedisOptions options = {})
        : Cluster{std::span<const Address>{parsed(seeds)}, std::move(options)} {}
    explicit Cluster(std::span<const Address> seeds, RedisOptions options = {})
        : table_{checked({seeds.begin(), seeds.end()}), detail::checked(checked(std::move(options)))},
          name_{table_.seeds_text()} {}

    Cluster(const Cluster&) = delete;
    Cluster& operator=(const Cluster&) = delete;
    ~Cluster() { at_the_end_.begin(); }

    static constexpr bool has_fencing_tokens = true;

    /// For messages: its seeds.
    const std::string& name() const noexcept { return name_; }

    /// For those that it must outlive.
    detail::Life life() const noexcept { return lifetime_.life(); }

    TimePoint now() const noexcept { return detail::now(); }
    Token fresh() const { return detail::random_token(); }
    void pause(const Deadline& until) const noexcept { detail::wait(-1, 0, until); }

    /// Blocks until `request.deadline` at the latest. Throws nothing but std::bad_alloc, and what the making of a
    /// node's Redis throws. A waiter has a connection to the key's node to itself.
    Answer ask(const Request& request) {
        if (!request.wants_answer) return send(request);
        return route(request, [](const Table::Known& node, const Request& what) { return node->node.ask(what); });
    }

    /// Who has the key; nothing if nobody has. By the deadline.
    Answer inspect(std::string_view key, const Deadline& deadline, Holder& holder) {
        return route(question_about(key, deadline), [&](const Table::Known& node, const Request& what) {
            return node->node.inspect(what.key, what.deadline, holder = {}, what.asking);
        });
    }

    /// For a check: the node that has the key now. By the deadline. Throws std::system_error.
    std::shared_ptr<Redis> node_of(std::string_view key, const Deadline& deadline) {
        std::shared_ptr<Redis> last;
        Holder holder;
        const Answer answer = route(question_about(key, deadline), [&](const Table::Known& node, const Request& what) {
            last = {node, &node->node};
            return last->inspect(what.key, what.deadline, holder, what.asking);
        });
        if (!answer.is_about_the_key()) raise(answer.why);
        return last;
    }

    /// In a thread that is started with the first lease that is kept; over connections that nobody else uses.
    void keep(const std::shared_ptr<detail::WorkerTask>& task, TimePoint when) { renewers_.keep(task, when, table_); }
    void drop(detail::WorkerTask& task) noexcept { renewers_.drop(task); }

private:
    template <class Uri>
    static std::string text(const Uri& uri) {
        if constexpr (std::is_pointer_v<Uri>)
            if (uri == nullptr) raise({Errc::bad_uri, "a null pointer"});
        return std::string{std::string_view{uri}};
    }

    static std::vector<Address> parsed(const std::vector<std::string>& seeds) {
        std::vector<Address> all;
        for (const std::string& seed : seeds) all.push_back(Address::parse(seed));
        return all;
    }

    static std::vector<Address> checked(std::vector<Address> seeds) {
        if (seeds.empty()) detail::refuse("the number of seeds", "0", "1 or more");
        for (const Address& one : seeds) {
            if (one.db != 0) detail::refuse("the database", std::to_string(one.db), "0, the only one of a cluster");
            if (!one.service.empty()) detail::refuse("a seed", one.text(), "a node: a cluster has no sentinels");
        }
        return seeds;
    }

    static RedisOptions checked(RedisOptions options) {
        if (options.restart_delay != Millis::zero())
            detail::refuse("restart_delay", detail::in_ms(options.restart_delay),
                           "0 ms in a cluster: a replica that takes over has been up for long");
        return options;
    }

    static Request question_about(std::string_view key, const Deadline& deadline) {
        return {.verb = Verb::acquire, .key = std::string{key}, .token = {}, .ttl = {}, .deadline = deadline};
    }

    /// Asks one node after another, until one says something that is of use, or there is no time left.
    template <class Ask>
    Answer route(const Request& request, Ask ask) {
        detail::ClusterRoute<Redis> route{table_, request, now()};
        for (;;) {
            const Table::Known node = route.next(now());
            Answer answer = ask(node, route.request());
            const bool is_stopped = answer.why.code == Errc::timed_out && detail::stopped(request.deadline);
            if (is_stopped || route.is_over(answer, now()) || detail::stopped(request.deadline)) return answer;
            if (route.at() > now()) pause(request.deadline.by(route.at()));
        }
    }

    /// Nobody waits for the answer: where it is not certain who has the slot, that is trouble, and the worker asks.
    Answer send(const Request& request) {
        const Table::Known owner = table_.owner(detail::key_slot(request.key));
        if (owner && !owner->is_doubted) return owner->node.ask(request);
        return {Verdict::unknown, {Errc::moved, name_ + ": the node that has the key's slot is not known"}};
    }

    detail::Uncancelled at_the_end_{std::defer_lock};
    const detail::Lifetime lifetime_{};
    Table table_;
    const std::string name_;
    detail::Renewers<detail::ClusterPort<Redis>> renewers_;
};

static_assert(FencingBackend<Cluster>);

/// As for a Redis: of the node that has a key which begins with `key`. The others are taken to be like it.
inline std::vector<std::string> check(Cluster& cluster, std::string_view key, Millis within = Millis{5'000}) {
    const detail::Uncancelled call;
    const Token token = cluster.fresh();
    const std::string own = detail::ServerCheck::key(key, token);
    const Deadline deadline{later(cluster.now(), within)};
    return detail::ServerCheck{*cluster.node_of(own, deadline), token, own, deadline, false}.run();
}

} // namespace redislock
