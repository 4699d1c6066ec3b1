/// Which server is the primary of a service: the sentinels that watch over it are asked. It knows nothing of what is
/// done with the answer. tests/sentinel_test.cpp goes red if it is wrong.
#pragma once

#include "../protocol/commands_exchange.hpp"
#include "channel_wait.hpp"

namespace redislock::detail {

/// The sentinels of one service. The first that answers counts; one that does not answer at once is asked together with
/// the next one. One that is behind, that knows of the primary for a short time only, or names again who is in doubt,
/// counts only where no other one knows better. Called from one thread at a time. A forked child has connections of its
/// own.
class Sentinels {
public:
    /// Null where the address is not that of a service. Throws Errc::bad_uri for one without sentinels, and what Server
    /// throws.
    static FindPrimary of(const Address& address, const RedisOptions& options) {
        if (address.service.empty()) return {};
        if (address.sentinels.empty()) raise({Errc::bad_uri, address.text() + ": it has no sentinels"});
        return [own = std::make_shared<Sentinels>(address, options)](bool is_in_doubt) {
            return own->primary(is_in_doubt);
        };
    }

    Sentinels(const Address& address, const RedisOptions& options)
        : question_{formatted({"SENTINEL", "MASTER", address.service})}, long_enough_{Primary::cool_down(
                                                                             options.restart_delay)} {
        const SentinelOptions& theirs = options.sentinel;
        if (theirs.credentials.password.empty() && !theirs.credentials.user.empty())
            refuse("sentinel.credentials", "a user without a password", "both, or none");
        const bool by_tls = theirs.uses_tls.value_or(address.tls);
        if (options.tls != TlsOptions{} && !address.tls && (!by_tls || theirs.tls))
            refuse("tls", "set, and neither servers nor sentinels are talked to by it", "with rediss+sentinel://");
        if (theirs.tls && !by_tls)
            refuse("sentinel.tls", "set, and the sentinels are not talked to by TLS", "with uses_tls = true");
        RedisOptions how;
        how.client_name = options.client_name;
        how.resolver = options.resolver;
        if (by_tls) how.tls = theirs.tls.value_or(options.tls);
        for (Address one : address.sentinels) {
            one.user = theirs.credentials.user;
            one.password = theirs.credentials.password;
            one.tls = by_tls;
            one.db = 0;
            servers_.push_back(std::make_unique<const Server>(one, how));
            names_.push_back(one.text());
        }
    }

    /// Blocks for a second at most. Throws Errc::no_sentinel where none answers, Errc::no_service where those that do
    /// don't know the service.
    Primary primary(bool is_in_doubt) {
        auto& [mutex, own] = own_.get();
        const std::lock_guard guard{mutex};
        Search search{*this, own, is_in_doubt};
        return search.run(later(now(), Millis{1'000}));
    }

private:
    /// What one of them says.
    struct Said {
        Primary primary{};
        std::uint64_t epoch = 0; ///< of the failover that has made it one
    };

    /// Between two searches.
    struct Own {
        std::vector<std::unique_ptr<Channel>> channels{};
        std::size_t first = 0; ///< who has answered last
        Said last{};
    };

    class Search {
    public:
        Search(const Sentinels& of, Own& own, bool is_in_doubt)
            : of_{of}, own_{own}, is_in_doubt_{is_in_doubt}, asked_(of.servers_.size()) {
            own_.channels.resize(asked_.size());
            first_ = own_.first + is_in_doubt;
        }

        Primary run(TimePoint end) {
            TimePoint next_at = now(); // when the next one is asked
            for (std::size_t begun = 0;;) {
                if (begun < asked_.size() && now() >= next_at) {
                    ask(begun++, end);
                    next_at = later(now(), patience);
                }
                std::size_t waited_for = 0;
                ChannelWait wait{{begun < asked_.size() ? next_at : best_ ? later(next_at, patience) : end}};
                for (std::size_t i = 0; i < begun; ++i) {
                    const Heard heard = look_at(i);
                    if (heard == Heard::this_one) return named(i);
                    if (heard == Heard::something) next_at = now();
                    if (heard != Heard::nothing) continue;
                    wait.add(channel(i));
                    ++waited_for;
                }
                if (begun == asked_.size() && waited_for == 0) break;
                if (begun == asked_.size() && best_ && now() >= next_at + patience) break;
                if (waited_for > 0 && (begun == asked_.size() || next_at > now())) wait();
            }
            if (best_) return named(*best_);
            raise(failure());
        }

    private:
        static constexpr Millis patience{100}; ///< with one sentinel, before the next one is asked as well

        /// One that is asked, in the order in which they are.
        struct Asked {
            std::shared_ptr<AwaitedQuestion> question{};
            std::vector<Reply> replies{};
            bool is_heard = false;
            Said said{};
            Failure why{};
        };
        enum class Heard { nothing, before, something, this_one };

        std::size_t index(std::size_t nth) const noexcept { return (first_ + nth) % asked_.size(); }
        Channel& channel(std::size_t nth) const noexcept { return *own_.channels[index(nth)]; }

        void ask(std::size_t nth, TimePoint end) {
            Asked& one = asked_[nth];
            std::unique_ptr<Channel>& channel = own_.channels[index(nth)];
            if (!channel || channel->owed() > 0) channel = std::make_unique<Channel>(*of_.servers_[index(nth)]);
            one.question = std::make_shared<AwaitedQuestion>(Request{
                .verb = Verb::extend, .key = {}, .token = {}, .ttl = {}, .deadline = end}); // one that is no acquire
            channel->send(std::make_unique<CommandsExchange>(one.question, of_.question_, one.replies));
        }

        Heard look_at(std::size_t nth) {
            Asked& one = asked_[nth];
            if (one.is_heard) return Heard::before;
            channel(nth).advance(now());
            if (!one.question->answer) return Heard::nothing;
            one.is_heard = true;
            one.why = one.question->answer->why;
            if (!one.replies.empty()) one.why = understand(one.replies.front(), one.said);
            if (one.why) return Heard::something;
            if (!best_ || is_better(one.said, asked_[*best_].said)) best_ = nth;
            const bool is_behind = one.said.epoch < own_.last.epoch;
            const bool is_long = now() >= one.said.primary.since + of_.long_enough_;
            return !is_behind && is_long && !is_doubted(one.said) ? Heard::this_one : Heard::something;
        }

        /// Of two, the one that has seen the later failover; that names another one than who is in doubt; or that has
        /// seen the primary as one for longer.
        bool is_better(const Said& one, const Said& other) const noexcept {
            if (one.epoch != other.epoch) return one.epoch > other.epoch;
            if (is_doubted(one) != is_doubted(other)) return is_doubted(other);
            return one.primary.since < other.primary.since;
        }
        bool is_doubted(const Said& said) const noexcept {
            const Primary& last = own_.last.primary;
            return is_in_doubt_ && said.primary.host == last.host && said.primary.port == last.port;
        }

        Failure understand(const Reply& reply, Said& said) const {
            if (reply.is_error() && reply.text.starts_with("ERR No such master")) return {Errc::no_service, {}};
            if (reply.is_error() && meaning(reply.text) == Errc::unsupported)
                return {Errc::unsupported, "it is no sentinel: " + printable(reply.text)};
            if (reply.is_error()) return {meaning(reply.text), printable(reply.text)};
            said.primary.host = value(reply.text, "ip");
            said.primary.port = value(reply.text, "port");
            const auto seen_for = number(value(reply.text, "role-reported-time"));
            said.epoch = number(value(reply.text, "config-epoch"));
            said.primary.since = now() - Millis{std::min<std::uint64_t>(seen_for, most_ms)};
            const bool is_host = !said.primary.host.empty() && said.primary.host.front() != '.';
            if (!is_host || number(said.primary.port) - 1 >= 65'535)
                return {Errc::protocol_error, "what it says of the service names no host and port"};
            return {};
        }

        static constexpr std::uint64_t most_ms = 30ULL * 24 * 3600 * 1000; ///< longer makes no difference

        /// Of an array of names and values, each behind a line feed.
        static std::string_view value(std::string_view text, std::string_view name) noexcept {
            const auto take = [&text] {
                text.remove_prefix(std::min<std::size_t>(text.size(), 1));
                const std::string_view line = text.substr(0, text.find('\n'));
                text.remove_prefix(line.size());
                return line;
            };
            while (!text.empty()) {
                const std::string_view own = take(), its = take();
                if (own == name) return its;
            }
            return {};
        }

        static std::uint64_t number(std::string_view digits) noexcept {
            std::uint64_t value = 0;
            std::from_chars(digits.data(), digits.data() + digits.size(), value);
            return value;
        }

        Primary named(std::size_t nth) {
            own_.first = index(nth);
            own_.last = asked_[nth].said;
            return own_.last.primary;
        }

        Failure failure() const {
            bool knows_none = false;
            std::string all;
            for (std::size_t i = 0; i < asked_.size(); ++i) {
                const Failure& why = asked_[i].why;
                knows_none |= why.code == Errc::no_service;
                std::string what = why.code == Errc::no_service ? "does not know it" : why.detail;
                if (what.empty()) what = why ? why.code.message() : "no answer";
                all += (all.empty() ? "" : "; ") + of_.names_[index(i)] + ": " + what;
            }
            return {knows_none ? Errc::no_service : Errc::no_sentinel, all};
        }

        const Sentinels& of_;
        Own& own_;
        const bool is_in_doubt_;
        std::size_t first_ = 0;
        std::vector<Asked> asked_;
        std::optional<std::size_t> best_{};
    };

    const std::vector<std::string> question_; ///< one command
    const Millis long_enough_;                ///< for a primary to have been seen as one, so that there is no cool-down
    std::vector<std::unique_ptr<const Server>> servers_{};
    std::vector<std::string> names_{};
    PerProcess<Guarded<Own>> own_;
};

} // namespace redislock::detail
