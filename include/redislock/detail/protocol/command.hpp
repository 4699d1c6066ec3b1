/// Commands as the protocol has them. What is in here knows bytes alone. tests/redis_test.cpp goes red if it is wrong.
#pragma once

#include <charconv>
#include <initializer_list>
#include <iterator>
#include <string>
#include <string_view>

namespace redislock::detail {

/// A command as the protocol has it: binary-safe, every argument with its length.
inline std::string formatted(std::initializer_list<std::string_view> arguments) {
    constexpr std::size_t longest_number = 24; // with what is around it
    std::size_t size = longest_number;
    for (const std::string_view argument : arguments) size += longest_number + argument.size();
    std::string command;
    command.reserve(size);
    const auto append = [&](char kind, std::size_t number) {
        char digits[longest_number];
        command += kind;
        command.append(digits, std::to_chars(digits, std::end(digits), number).ptr);
        command += "\r\n";
    };
    append('*', arguments.size());
    for (const std::string_view argument : arguments) {
        append('$', argument.size());
        command += argument;
        command += "\r\n";
    }
    return command;
}

/// Where the nth argument of such a command begins, from 0.
inline std::size_t argument_at(std::string_view command, std::size_t nth) {
    std::size_t at = command.find('\n') + 1;
    for (;; --nth) {
        std::size_t size = 0;
        std::from_chars(command.data() + at + 1, command.data() + command.size(), size);
        at = command.find('\n', at) + 1;
        if (nth == 0) return at;
        at += size + 2;
    }
}

/// How many bytes the first of some such commands has.
inline std::size_t command_size(std::string_view commands) {
    std::size_t arguments = 0, size = 0;
    std::from_chars(commands.data() + 1, commands.data() + commands.size(), arguments);
    const std::size_t last = argument_at(commands, arguments - 1);
    const std::size_t line = commands.rfind('$', last - 1); // before its size
    std::from_chars(commands.data() + line + 1, commands.data() + commands.size(), size);
    return last + size + 2;
}

} // namespace redislock::detail
