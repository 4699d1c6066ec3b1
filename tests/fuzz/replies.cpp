// Any bytes as a server's replies, through the parser, in whatever pieces they come: what they mean to each question is
// judged from the bytes, without the parser.
#include "fuzz.hpp"

#include <redislock/detail/protocol/handshake.hpp>
#include <redislock/detail/protocol/meaning.hpp>
#include <redislock/detail/protocol/scripts.hpp>

using namespace redislock;
using namespace redislock::detail;
using fuzz::claim;

namespace {

/// The number that a whole integer reply has; none if it is not one, digit by digit, as a server writes it.
std::optional<long long> integer_in(std::string_view bytes) {
    if (!bytes.starts_with(':') || !bytes.ends_with("\r\n")) return std::nullopt;
    const std::string_view digits = bytes.substr(1, bytes.size() - 3);
    long long value = 0;
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
    if (error != std::errc{} || std::to_string(value) != digits) return std::nullopt;
    return value;
}

bool means_yes(const Request& request, std::string_view bytes) {
    if (request.verb == Verb::release && bytes == ":2\r\n") return true; // and handed on
    if (request.verb != Verb::acquire) return bytes == ":1\r\n";
    return bytes == "+OK\r\n" || (request.fencing && integer_in(bytes).value_or(0) > 0);
}

void judge(const Request& request, const detail::Reply& reply, std::string_view bytes) {
    const Answer answer = meaning_of(request, reply);
    claim((answer.verdict == Verdict::yes) == means_yes(request, bytes), "yes is what means yes, and nothing else");
    claim((answer.verdict == Verdict::yes) == !answer.why, "what is not a yes has a reason");
    const bool not_understood = answer.why.code == Errc::protocol_error;
    claim((answer.verdict == Verdict::unknown) == not_understood, "unknown is what is not understood");
    claim(!not_understood || ends_connection(answer), "who is not understood is not asked again");
    claim(bytes.front() != '-' || answer.verdict == Verdict::no, "an error means no");
    claim(answer.fencing_token == (answer.verdict == Verdict::yes && request.fencing
                                       ? static_cast<std::uint64_t>(integer_in(bytes).value_or(0))
                                       : 0),
          "the fence is the number in the reply");
    claim(bytes.front() != '-' || answer.why.detail.find(request.token.hex()) == std::string::npos,
          "of an error, which may repeat arguments, no token is kept");
    const Millis left = answer.holder_left.value_or(Millis::zero());
    claim(left >= Millis::zero() && left <= Options::longest_ttl, "what the holder has left is a ttl");

    const bool enough = integer_in(bytes).value_or(-1) >= static_cast<long long>(request.replicas);
    claim(!shortage(request, reply) == enough, "replicas are counted by a number alone");
}

void judge(const Handshake& handshake, const detail::Reply& reply, std::string_view bytes) {
    for (std::size_t nth = 0; nth < handshake.awaited(); ++nth) {
        const Failure objection = handshake.objection(nth, reply);
        claim(static_cast<bool>(objection) == (bytes.front() == '-'), "to an error there is an objection");
        claim(nth > 0 || objection.detail.empty(), "what is said to a password is not repeated");
    }
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    fuzz::Input input{data, size};
    const unsigned flags = input.byte(), piece = 1 + input.byte();
    const Token token = Token::from_bits(0xfedc, 0xba98);
    Request request{static_cast<Verb>(flags % 3), "k", token, Millis{1000}, TimePoint::max()};
    request.patience = Millis{flags & 4 ? 10 : 0};
    request.fencing = (flags & 8) != 0 && request.verb == Verb::acquire;
    request.replicas = flags >> 4;
    Address address;
    address.password = "sesame";
    address.db = 1;
    const Handshake handshake{address, {}};

    const std::unique_ptr<redisReader, decltype(&::redisReaderFree)> reader{
        ::redisReaderCreateWithFunctions(ReplyBuilder::functions()), &::redisReaderFree};
    detail::Reply reply;
    reader->privdata = &reply;
    for (std::string unread; !input.empty();) {
        const std::string_view fed = input.bytes(piece);
        unread += fed;
        ::redisReaderFeed(reader.get(), fed.data(), fed.size());
        for (void* whole = &reply; whole != nullptr;) {
            if (::redisReaderGetReply(reader.get(), &whole) != REDIS_OK) return 0;
            if (whole == nullptr) break;
            if (reply.type == 0) return 0; // of RESP3
            const std::size_t ends = unread.size() - (reader->len - reader->pos);
            const std::string_view bytes = std::string_view{unread}.substr(0, ends);
            judge(request, reply, bytes);
            judge(handshake, reply, bytes);
            unread.erase(0, ends);
            reply.type = 0;
        }
    }
    return 0;
}
