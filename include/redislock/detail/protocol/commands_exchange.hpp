/// Some commands and what the server makes of each, as a conversation. tests/check_test.cpp goes red if it is wrong.
#pragma once

#include "exchange.hpp"

#include <vector>

namespace redislock::detail {

/// Yes, whatever the replies are: they are in `replies`, in the order of the commands.
class CommandsExchange final : public Exchange {
public:
    /// `replies` must live until the question is answered.
    CommandsExchange(std::shared_ptr<Question> question, const std::vector<std::string>& commands,
                     std::vector<Reply>& replies)
        : Exchange{std::move(question), 0}, commands_{commands}, replies_{replies} {}

    void begin(Peer&, PreparedCommands&, TimePoint, std::string& out) override {
        for (const std::string& command : commands_) out += command;
    }

    Next take(Peer&, const Reply& reply, TimePoint, std::string&) override {
        replies_.push_back(reply);
        return replies_.size() == commands_.size() ? done({Verdict::yes}) : Next::more;
    }

private:
    const std::vector<std::string>& commands_;
    std::vector<Reply>& replies_;
};

} // namespace redislock::detail
