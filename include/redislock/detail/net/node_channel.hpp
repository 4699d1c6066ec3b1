/// A connection to one of the servers that vote: beside questions it carries the wait for a turn, and tells which
/// server it leads to. tests/quorum_test.cpp goes red if it is wrong.
#pragma once

#include "../protocol/commands_exchange.hpp"
#include "../protocol/line.hpp"
#include "channel_wait.hpp"
#include "node_set.hpp"

namespace redislock::detail {

struct NodeChannel : Channel {
    explicit NodeChannel(const Server& server) : Channel{server} {}

    template <class... Channels>
    static void wait(const Deadline& deadline, const Channels&... channels) {
        ChannelWait{deadline, channels...}();
    }

    /// Asks which server it is.
    void identify(Identities& identities, std::size_t node, const Deadline& deadline) {
        auto question = std::make_shared<Introduction>(identities, node, deadline);
        const Introduction& own = *question;
        send(std::make_unique<CommandsExchange>(question, own.commands, question->replies));
    }

    /// Asks how the key stands, and keeps the place of those in line.
    void announce(std::shared_ptr<Question> question, std::size_t node) {
        send(std::make_unique<AnnounceExchange>(std::move(question), node));
    }

    /// Waits for a turn, which is a yes. What is returned lives until there is an answer.
    LineExchange& stand_in_line(std::shared_ptr<Question> question, TimePoint now) {
        auto exchange = std::make_unique<LineExchange>(std::move(question), now, LineExchange::For::turn);
        LineExchange& line = *exchange;
        send(std::move(exchange));
        return line;
    }

private:
    struct Introduction final : Question {
        Introduction(Identities& of, std::size_t which, const Deadline& deadline)
            : Question{{.verb = Verb::acquire, .key = {}, .token = {}, .ttl = {}, .deadline = deadline}},
              identities{of}, node{which} {}
        Identities& identities;
        const std::size_t node;
        /// Without the rest of INFO, which is long.
        const std::vector<std::string> commands{
            formatted({"EVAL", "return redis.call('INFO', 'server'):match('run_id:(%w+)')", "0"})};
        std::vector<Reply> replies{};

        void answered(std::size_t, Answer answer) override {
            if (answer.verdict != Verdict::yes) return;
            const Reply& reply = replies.front();
            if (reply.is_error() && Answer{Verdict::no, {meaning(reply.text), {}}}.is_trouble()) return; // it may yet
            const bool is_run_id = reply.type == REDIS_REPLY_STRING && reply.text.size() == 40;
            identities.heard(node, is_run_id ? std::string_view{reply.text} : std::string_view{});
        }
    };
};

} // namespace redislock::detail
