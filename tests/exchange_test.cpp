// Conversations with a server, row by row of their tables: replies go in, bytes and answers come out. No server, no
// socket, no clock.
#include "catch.hpp"

#include <redislock/detail/protocol/asking_exchange.hpp>
#include <redislock/detail/protocol/inspect_exchange.hpp>
#include <redislock/detail/protocol/line.hpp>

#include <algorithm>
#include <vector>

using namespace redislock;
using namespace std::chrono_literals;
using namespace redislock::detail;
using Next = Exchange::Next;

namespace {

const Token token = Token::from_bits(1, 1);
constexpr TimePoint start{1h};

Request request(Verb verb, unsigned replicas = 0, Millis patience = 0ms) {
    Request r{.verb = verb, .key = "k", .token = token, .ttl = 10s, .deadline = start + 5s};
    r.patience = patience;
    r.replicas = replicas;
    return r;
}

Reply ok() { return {REDIS_REPLY_STATUS, 0, "OK"}; }
Reply nil() { return {REDIS_REPLY_NIL, 0, {}}; }
Reply array() { return {REDIS_REPLY_ARRAY, 0, {}}; }
Reply number(long long value) { return {REDIS_REPLY_INTEGER, value, {}}; }
Reply text(std::string value) { return {REDIS_REPLY_STRING, 0, std::move(value)}; }
Reply error(std::string sentence) { return {REDIS_REPLY_ERROR, 0, std::move(sentence)}; }
const Reply noscript = error("NOSCRIPT No matching script.");

/// The names of the commands that have been sent, in order; a script in full is EVAL.
std::vector<std::string> commands(const std::string& bytes) {
    std::vector<std::string> names;
    for (std::size_t at = bytes.find('*'); at != bytes.npos && at < bytes.size();) {
        const int count = std::stoi(bytes.substr(at + 1));
        at = bytes.find("\r\n", at) + 2;
        for (int i = 0; i < count; ++i) {
            const auto size = static_cast<std::size_t>(std::stoi(bytes.substr(at + 1)));
            at = bytes.find("\r\n", at) + 2;
            if (i == 0) names.push_back(bytes.substr(at, size));
            at += size + 2;
        }
    }
    return names;
}
using Names = std::vector<std::string>;

/// An exchange in the hands of a test: what it sends is taken out at each look.
template <class Kind>
struct Conversation {
    template <class... Arguments>
    explicit Conversation(const Request& what, Arguments&&... more)
        : question{what}, exchange{question.shared(), std::forward<Arguments>(more)...} {}
    Conversation(const Request& what, std::unique_ptr<Exchange> inner) : question{what}, exchange{std::move(inner)} {}

    Names begin() {
        exchange.begin(peer, prepared, start, out);
        return sent();
    }
    Next take(const Reply& reply, TimePoint now = start) { return exchange.take(peer, reply, now, out); }
    Names sent() { return commands(std::exchange(out, {})); }

    AwaitedQuestion question;
    Kind exchange;
    Peer peer{};
    PreparedCommands prepared{};
    std::string out{};
};
using Command = Conversation<CommandExchange>;
using Announcement = Conversation<AnnounceExchange>;
using Inspection = Conversation<InspectExchange>;
using Line = Conversation<LineExchange>;

} // namespace

TEST_CASE("a plain acquire is one SET", "[exchange]") {
    Command one{request(Verb::acquire), 0u};
    CHECK(one.begin() == Names{"SET"});
    CHECK(one.take(ok()) == Next::done);
    CHECK(one.exchange.take_answer().verdict == Verdict::yes);
    CHECK(one.exchange.may_grant());
}

TEST_CASE("a script is sent in full when a connection first uses it, and by its name from then on", "[exchange]") {
    for (const Verb verb : {Verb::acquire, Verb::extend, Verb::release}) {
        Request r = request(verb);
        r.fencing = verb == Verb::acquire;
        Command first{r, 0u};
        CHECK(first.begin() == Names{"EVAL"});
        Command second{r, 0u};
        second.peer = first.peer;
        CHECK(second.begin() == Names{"EVALSHA"});
        CHECK(second.take(noscript) == Next::resent);
        CHECK(second.sent() == Names{"EVAL"});
        CHECK(second.take(number(1)) == Next::done);
        CHECK(second.exchange.take_answer().verdict == Verdict::yes);
    }
}

TEST_CASE("a release by name is sent in full behind itself when nobody waits for it any more", "[exchange]") {
    Command one{request(Verb::release), 0u};
    one.peer.knows_script.fill(true);
    one.begin();
    CHECK(one.exchange.needs_undo());
    one.take(noscript);
    CHECK_FALSE(one.exchange.needs_undo()); // by now it is in full itself
}

TEST_CASE("a script that a server does not know in full either is an error, and not sent for ever", "[exchange]") {
    Command one{request(Verb::extend), 0u};
    one.begin();
    for (int forms = 0; forms < 3; ++forms) CHECK(one.take(noscript) == Next::resent);
    CHECK(one.take(noscript) == Next::done);
    CHECK(one.exchange.take_answer().verdict == Verdict::no);
}

TEST_CASE("the first acquire from a server waits for the proof that its release is taken", "[exchange]") {
    Command one{request(Verb::acquire), 0u};
    one.peer.is_release_proven = false;
    CHECK(one.begin() == Names{"EVAL"});
    SECTION("as it is") {
        CHECK(one.take(number(-1)) == Next::resent);
        CHECK(one.peer.release_form == ReleaseForm::script);
    }
    SECTION("whatever the key holds") {
        CHECK(one.take(error("WRONGTYPE Operation against a key holding the wrong kind of value")) == Next::resent);
        CHECK(one.peer.release_form == ReleaseForm::script);
    }
    SECTION("without the keys beside the lock's") {
        CHECK(one.take(error("ERR bad lua script for redis cluster, all the keys that the script uses")) ==
              Next::resent);
        CHECK(one.sent() == Names{"EVAL"});
        CHECK(one.take(number(-1)) == Next::resent);
        CHECK(one.peer.release_form == ReleaseForm::bare_script);
    }
    SECTION("by a command of its own, where scripts are refused") {
        const Reply unknown = error("ERR unknown command 'eval', with args beginning with: 'x'");
        CHECK(one.take(unknown) == Next::resent);
        CHECK(one.take(unknown) == Next::resent);
        one.sent();
        SECTION("Valkey's") {}
        SECTION("Redis'") {
            CHECK(one.take(error("ERR unknown command 'delifeq'")) == Next::resent);
            CHECK(one.sent() == Names{"DELEX"});
        }
        CHECK(one.take(number(0)) == Next::resent);
        CHECK(is_command(one.peer.release_form));
    }
    CHECK(one.sent() == Names{"SET"});
    CHECK(one.take(ok()) == Next::done);
    CHECK(one.exchange.take_answer().verdict == Verdict::yes);
}

TEST_CASE("where no form of a release is taken, nothing is asked for", "[exchange]") {
    Command one{request(Verb::acquire), 0u};
    one.peer.is_release_proven = false;
    one.begin();
    CHECK(one.take(error("NOPERM this user has no permissions to run the 'eval' command")) == Next::resent);
    CHECK(one.take(error("NOPERM the same")) == Next::resent);
    CHECK(one.take(error("ERR unknown command 'delifeq'")) == Next::resent);
    CHECK(one.take(error("ERR unknown command 'delex'")) == Next::done);
    const Answer answer = one.exchange.take_answer();
    CHECK(answer.verdict == Verdict::no);
    CHECK(answer.why.code == Errc::no_permission);
    CHECK_THAT(answer.why.detail, containing("could not be released here: NOPERM this user"));
    CHECK_FALSE(one.peer.is_release_proven);
}

TEST_CASE("what is the matter with a server for a while ends the proof, and proves nothing", "[exchange]") {
    Command one{request(Verb::acquire), 0u};
    one.peer.is_release_proven = false;
    one.begin();
    CHECK(one.take(error("LOADING Redis is loading the dataset in memory")) == Next::done);
    CHECK(one.exchange.take_answer().why.code == Errc::loading);
    CHECK_FALSE(one.peer.is_release_proven);
}

TEST_CASE("an acquire that is released before its proof has come is not asked for", "[exchange]") {
    Command one{request(Verb::acquire), 0u};
    one.peer.is_release_proven = false;
    one.begin();
    one.exchange.revoke();
    CHECK(one.take(number(-1)) == Next::done);
    CHECK(one.sent().empty());
    CHECK(one.exchange.take_answer().verdict == Verdict::no);
}

TEST_CASE("a lease is extended and released in the form that the server takes", "[exchange]") {
    Command release{request(Verb::release), 0u}, extension{request(Verb::extend), 0u};
    SECTION("by scripts that touch the lock's key alone") {
        release.peer.release_form = extension.peer.release_form = ReleaseForm::bare_script;
        CHECK(release.begin() == Names{"EVAL"});
        CHECK(extension.begin() == Names{"EVAL"});
        CHECK(release.take(number(0)) == Next::done);
        CHECK(extension.take(number(1)) == Next::done);
        CHECK(release.exchange.take_answer().why.code == Errc::stolen);
    }
    SECTION("by commands") {
        release.peer.release_form = extension.peer.release_form = ReleaseForm::delifeq;
        CHECK(release.begin() == Names{"DELIFEQ"});
        CHECK(extension.begin() == Names{"SET"});
        CHECK(release.take(number(0)) == Next::done); // another's, or none: it does not tell
        CHECK(extension.take(ok()) == Next::done);
        CHECK(release.exchange.take_answer().why.code == Errc::expired);
    }
    CHECK(extension.exchange.take_answer().verdict == Verdict::yes);
}

TEST_CASE("an extension that is refused as a command is sent in the next form", "[exchange]") {
    Command one{request(Verb::extend), 0u};
    one.begin();
    CHECK(one.take(error("NOPERM this user has no permissions to run the 'eval' command")) == Next::resent);
    CHECK(one.take(error("NOPERM the same")) == Next::resent);
    CHECK(one.sent() == Names{"EVAL", "SET"});
    CHECK(one.take(ok()) == Next::done);
    CHECK(one.exchange.take_answer().verdict == Verdict::yes);
    CHECK(one.peer.release_form == ReleaseForm::delifeq);
}

TEST_CASE("where there are no scripts an acquire that has patience is a plain one", "[exchange]") {
    Command one{request(Verb::acquire, 0, 1s), 0u};
    one.peer.release_form = ReleaseForm::delifeq;
    CHECK(one.begin() == Names{"SET"});
    CHECK(one.take(nil()) == Next::done);
    CHECK(one.exchange.take_answer().is_busy());
}

TEST_CASE("a release that is refused as a command is sent in the next form", "[exchange]") {
    Command one{request(Verb::release), 0u};
    one.begin();
    CHECK(one.take(error("NOPERM this user has no permissions to access one of the keys")) == Next::resent);
    CHECK(one.take(number(1)) == Next::done);
    CHECK(one.exchange.take_answer().verdict == Verdict::yes);
    CHECK(one.peer.release_form == ReleaseForm::bare_script);
}

TEST_CASE("an acquire is not sent again when its release has been sent behind it", "[exchange]") {
    Request r = request(Verb::acquire);
    r.fencing = true;
    Command one{r, 0u};
    one.peer.knows_script[0] = true;
    one.begin();
    one.exchange.revoke();
    CHECK(one.take(noscript) == Next::done);
    CHECK(one.sent().empty());
}

TEST_CASE("a release that nobody waits for is sent in full each time", "[exchange]") {
    Request r = request(Verb::release);
    r.wants_answer = false;
    Command one{r, 0u};
    one.peer.knows_script = {true, true, true};
    CHECK(one.begin() == Names{"EVAL"});
}

TEST_CASE("what replicas are to have is counted after the server's own yes, and not after a no", "[exchange]") {
    Command granted{request(Verb::acquire, 2), 0u};
    granted.begin();
    CHECK(granted.exchange.counts_replicas() == 2);
    CHECK(granted.take(ok()) == Next::count);
    CHECK(granted.exchange.counted(number(2), granted.out) == Next::done);
    CHECK(granted.exchange.take_answer().verdict == Verdict::yes);

    Command busy{request(Verb::acquire, 2), 0u};
    busy.begin();
    CHECK(busy.take(nil()) == Next::done);
    CHECK(busy.exchange.take_answer().is_busy());
}

TEST_CASE("a grant that too few replicas have is released, and then it is a no", "[exchange]") {
    struct Row {
        Reply released;
        Verdict expected;
    };
    for (const Row& row : {Row{number(1), Verdict::no}, Row{number(-1), Verdict::unknown},
                           Row{error("ERR anything"), Verdict::unknown}}) {
        Command one{request(Verb::acquire, 2), 0u};
        one.begin();
        one.take(ok());
        CHECK(one.exchange.counted(number(1), one.out) == Next::resent);
        CHECK(one.sent() == Names{"EVAL"});
        CHECK(one.exchange.counts_replicas() == 0);
        CHECK(one.exchange.unanswered(Verdict::no, {Errc::disconnected, {}}).verdict == Verdict::unknown);
        CHECK(one.take(row.released) == Next::done);
        const Answer answer = one.exchange.take_answer();
        CHECK(answer.verdict == row.expected);
        CHECK(answer.why.code == Errc::no_replicas);
    }
}

TEST_CASE("an extension that too few replicas have is unknown, and is not undone", "[exchange]") {
    Command one{request(Verb::extend, 2), 0u};
    one.begin();
    CHECK(one.take(number(1)) == Next::count);
    CHECK(one.exchange.counted(number(0), one.out) == Next::done);
    CHECK(one.sent().empty());
    CHECK(one.exchange.take_answer().verdict == Verdict::unknown);
}

TEST_CASE("a count of replicas that is no number is not understood", "[exchange]") {
    Command one{request(Verb::acquire, 2), 0u};
    one.begin();
    one.take(ok());
    CHECK(one.exchange.counted({REDIS_REPLY_STATUS, 0, "QUEUED"}, one.out) == Next::done);
    CHECK(one.exchange.take_answer().why.code == Errc::protocol_error);
}

TEST_CASE("an announcement tells how long the key is held", "[exchange]") {
    struct Row {
        Reply reply;
        Verdict verdict;
        std::error_code why;
        std::optional<Millis> left;
    };
    for (const Row& row : {Row{number(1'500), Verdict::no, Errc::busy, 1'500ms},
                           Row{number(-2), Verdict::no, Errc::busy, 0ms}, // free: the first in line has it
                           Row{number(-1), Verdict::no, Errc::no_expiry, {}},
                           Row{{REDIS_REPLY_STATUS, 0, "hash"}, Verdict::no, Errc::wrong_type, {}},
                           Row{error("NOPERM no"), Verdict::no, Errc::no_permission, {}},
                           Row{number(-23), Verdict::unknown, Errc::protocol_error, {}},
                           Row{array(), Verdict::unknown, Errc::protocol_error, {}}}) {
        Announcement one{request(Verb::acquire), 0u};
        CHECK(one.begin() == Names{"EVALSHA"});
        CHECK(one.take(noscript) == Next::resent);
        CHECK(one.sent() == Names{"EVAL"});
        CHECK(one.take(row.reply) == Next::done);
        const Answer answer = one.exchange.take_answer();
        CHECK(answer.verdict == row.verdict);
        CHECK(answer.why.code == row.why);
        CHECK(answer.holder_left == row.left);
        CHECK_FALSE(one.exchange.may_grant());
    }
}

TEST_CASE("an inspection tells value and remaining time, or that nobody holds the key", "[exchange]") {
    struct Row {
        Reply value, left;
        Verdict verdict;
        std::error_code why;
    };
    for (const Row& row :
         {Row{text("x"), number(70), Verdict::yes, {}}, Row{text("x"), number(-1), Verdict::yes, {}},
          Row{nil(), number(-2), Verdict::no, Errc::expired}, Row{nil(), number(70), Verdict::no, Errc::expired},
          Row{text("x"), number(-2), Verdict::no, Errc::expired},
          Row{error("WRONGTYPE no"), number(70), Verdict::yes, {}},
          Row{error("LOADING no"), number(70), Verdict::no, Errc::loading},
          Row{text("x"), error("NOPERM no"), Verdict::no, Errc::no_permission},
          Row{text("x"), ok(), Verdict::unknown, Errc::protocol_error}}) {
        Holder holder;
        Inspection one{request(Verb::acquire), holder};
        CHECK(one.begin() == Names{"EVAL", "PTTL", "PTTL"});
        CHECK(one.take(row.value) == Next::more);
        CHECK(one.take(row.left) == Next::more);
        CHECK(one.take(number(500)) == Next::done);
        const Answer answer = one.exchange.take_answer();
        CHECK(answer.verdict == row.verdict);
        CHECK(answer.why.code == row.why);
        if (answer.verdict == Verdict::yes && row.left.integer > 0) CHECK(holder.remaining == Millis{row.left.integer});
        CHECK(holder.is_awaited);
    }
}

TEST_CASE("who may not run scripts inspects the value in full, once", "[exchange]") {
    Holder holder;
    Inspection one{request(Verb::acquire), holder};
    one.begin();
    CHECK(one.take(error("NOPERM no")) == Next::more);
    CHECK(one.take(number(70)) == Next::more);
    CHECK(one.take(error("NOPERM no")) == Next::resent);
    CHECK(one.sent() == Names{"GET", "PTTL", "PTTL"});
    one.take(text("x"));
    one.take(number(70));
    CHECK(one.take(error("NOPERM no")) == Next::done);
    CHECK(one.exchange.take_answer().verdict == Verdict::yes);
    CHECK(holder.value == "x");
    CHECK_FALSE(holder.is_awaited);

    Inspection refused{request(Verb::acquire), holder};
    refused.begin();
    refused.take(error("NOPERM no"));
    refused.take(number(70));
    CHECK(refused.take(number(-2)) == Next::resent);
    refused.take(error("NOPERM no"));
    refused.take(number(70));
    CHECK(refused.take(number(-2)) == Next::done);
    CHECK(refused.exchange.take_answer().why.code == Errc::no_permission);
}

TEST_CASE("who first waits on a connection announces, and blocks when the key is known to be held", "[exchange]") {
    Line one{request(Verb::acquire, 0, 3s), start};
    CHECK(one.begin() == Names{"EVALSHA"});
    CHECK(one.exchange.due() == start + 1s); // a sign of life
    CHECK(one.take(noscript) == Next::resent);
    CHECK(one.sent() == Names{"EVAL"});
    CHECK(one.take(number(9'000)) == Next::resent);
    CHECK(one.sent() == Names{"BLPOP", "SET"});
    CHECK(one.exchange.blocks());
    CHECK(one.exchange.due() == start + 3s);
    CHECK(one.take(array()) == Next::more);
    CHECK(one.take(ok()) == Next::done);
    const Answer answer = one.exchange.take_answer();
    CHECK((answer.verdict == Verdict::yes && answer.queued));
    CHECK(one.exchange.surplus() == 0);
}

TEST_CASE("who has waited before on a connection sends all in one write", "[exchange]") {
    Line one{request(Verb::acquire, 2, 3s), start};
    one.peer.lets_wait = true;
    CHECK(one.begin() == Names{"EVALSHA", "BLPOP", "SET", "WAIT"});
    CHECK(one.exchange.counts_replicas() == 0);
    CHECK(one.take(noscript) == Next::more); // a look that is due at once announces
    CHECK(one.exchange.look_at() <= start + 1ms);
    CHECK(one.take(array()) == Next::more);
    CHECK(one.take(ok()) == Next::more);
    CHECK(one.take(number(2)) == Next::done);
    CHECK(one.exchange.take_answer().verdict == Verdict::yes);
}

TEST_CASE("a lock that is handed on and that too few replicas have is given back, behind a nudge as well",
          "[exchange]") {
    for (const bool nudged : {false, true}) {
        Line one{request(Verb::acquire, 2, 3s), start};
        one.peer.lets_wait = true;
        one.begin();
        one.take(number(9'000));
        if (nudged) CHECK_FALSE(one.exchange.is_overdue(start + 3s, one.out));
        CHECK(one.sent() == (nudged ? Names{"PTTL"} : Names{}));
        one.take(array());
        one.take(ok());
        CHECK(one.take(number(1)) == Next::resent);
        CHECK(one.sent() == Names{"EVAL"});
        if (nudged) CHECK(one.take(number(9'000)) == Next::more);
        CHECK(one.take(number(1)) == Next::done);
        const Answer answer = one.exchange.take_answer();
        CHECK((answer.verdict == Verdict::no && answer.why.code == Errc::no_replicas));
        CHECK(one.exchange.surplus() == 0);
    }
}

TEST_CASE("when the patience is over the server is made to answer, and its answer to that is surplus", "[exchange]") {
    Line one{request(Verb::acquire, 0, 3s), start};
    one.peer.lets_wait = true;
    one.begin();
    one.take(number(9'000));
    CHECK_FALSE(one.exchange.is_overdue(start + 2s, one.out));
    CHECK(one.sent().empty());
    CHECK_FALSE(one.exchange.is_overdue(start + 3s, one.out));
    CHECK(one.sent() == Names{"PTTL"});
    CHECK(one.exchange.due() == start + 4s);
    one.take(nil(), start + 3s);
    CHECK(one.take(nil(), start + 3s) == Next::done);
    const Answer answer = one.exchange.take_answer();
    CHECK((answer.is_busy() && answer.queued && answer.holder_left == 9'000ms));
    CHECK(one.exchange.surplus() == 1);

    Line silent{request(Verb::acquire, 0, 3s), start};
    silent.peer.lets_wait = true;
    silent.begin();
    silent.take(number(9'000));
    silent.exchange.is_overdue(start + 3s, silent.out);
    CHECK(silent.exchange.is_overdue(start + 4s, silent.out));
}

TEST_CASE("who may not stand in line polls with a script", "[exchange]") {
    Line announced{request(Verb::acquire, 0, 3s), start};
    announced.begin();
    CHECK(announced.take(error("NOPERM no")) == Next::resent);
    CHECK(announced.sent() == Names{"EVALSHA"});
    CHECK(announced.peer.no_line_for == "k");
    CHECK(announced.take(noscript) == Next::resent);
    CHECK(announced.take(number(-101)) == Next::done);
    const Answer polled = announced.exchange.take_answer();
    CHECK((polled.is_busy() && !polled.queued && polled.holder_left == 100ms));

    Line blocked{request(Verb::acquire, 0, 3s), start};
    blocked.begin();
    blocked.take(number(9'000));
    blocked.take(error("NOPERM no"));
    CHECK(blocked.peer.no_line_for == "k");
    CHECK_FALSE(blocked.peer.lets_wait);
    CHECK(blocked.take(nil()) == Next::done);
    const Answer seen = blocked.exchange.take_answer();
    CHECK((seen.is_busy() && !seen.queued && seen.holder_left == 9'000ms));
}

TEST_CASE("a waiter that a server unblocks has stood in line all the same", "[exchange]") {
    Line one{request(Verb::acquire, 0, 3s), start};
    one.peer.lets_wait = true;
    one.begin();
    one.take(number(9'000));
    one.take(error("UNBLOCKED force unblock"));
    one.take(nil());
    CHECK(one.exchange.take_answer().queued);
    CHECK(one.peer.lets_wait);
}

TEST_CASE("an announcement that is refused within one write ends the connection, with an undo behind", "[exchange]") {
    Line one{request(Verb::acquire, 0, 3s), start};
    one.peer.lets_wait = true;
    one.begin();
    CHECK(one.take(error("NOPERM no")) == Next::leave);
    CHECK(one.exchange.take_answer().why.code == Errc::no_permission);
    CHECK(one.exchange.may_grant());
}

TEST_CASE("who waits for a turn alone takes nothing, and leaves nothing to be undone", "[exchange]") {
    Line one{request(Verb::acquire, 2, 3s), start, LineExchange::For::turn};
    CHECK_FALSE(one.exchange.may_grant());
    CHECK_FALSE(one.exchange.needs_undo());
    one.begin();
    SECTION("his turn comes") {
        CHECK(one.take(number(9'000)) == Next::resent);
        CHECK(one.sent() == Names{"BLPOP"});
        CHECK(one.exchange.blocks());
        CHECK(one.take(array()) == Next::done);
        const Answer answer = one.exchange.take_answer();
        CHECK((answer.verdict == Verdict::yes && answer.queued && answer.holder_left == 9'000ms));
    }
    SECTION("his patience is over") {
        one.take(number(9'000));
        CHECK(one.take(nil()) == Next::done);
        const Answer answer = one.exchange.take_answer();
        CHECK((answer.is_busy() && answer.queued));
    }
    SECTION("he is unblocked without a turn") {
        one.take(number(9'000));
        CHECK(one.take(error("UNBLOCKED force unblock")) == Next::done);
        CHECK(one.exchange.take_answer().is_busy());
    }
    SECTION("he may not block") {
        one.take(number(9'000));
        CHECK(one.take(error("NOPERM this user has no permissions to run the 'blpop' command")) == Next::done);
        CHECK(one.exchange.take_answer().why.code == Errc::no_permission);
        CHECK(one.peer.no_line_for == "k");
    }
    SECTION("he may not be announced") {
        CHECK(one.take(error("NOPERM no")) == Next::done);
        CHECK(one.exchange.take_answer().why.code == Errc::no_permission);
    }
}

TEST_CASE("a turn that is asked for in one write, and refused, was none", "[exchange]") {
    Line one{request(Verb::acquire, 0, 3s), start, LineExchange::For::turn};
    one.peer.lets_wait = true;
    CHECK(one.begin() == Names{"EVALSHA", "BLPOP"});
    CHECK(one.take(error("NOPERM no")) == Next::leave);
    const Answer answer = one.exchange.take_answer();
    CHECK((answer.verdict == Verdict::no && answer.why.code == Errc::no_permission));
}

TEST_CASE("a release says whether it is the turn of one in line", "[exchange]") {
    Command one{request(Verb::release), 0u};
    one.begin();
    CHECK(one.take(number(2)) == Next::done);
    CHECK(one.exchange.take_answer().verdict == Verdict::yes);
    Command extension{request(Verb::extend), 0u};
    extension.begin();
    CHECK(extension.take(number(2)) == Next::done);
    CHECK(extension.exchange.take_answer().verdict == Verdict::unknown);
}

TEST_CASE("a release of which nobody in line is to hear names the lock's key alone", "[exchange]") {
    Request quiet = request(Verb::release);
    quiet.hands_on = false;
    Command one{quiet, 0u};
    one.exchange.begin(one.peer, one.prepared, start, one.out);
    CHECK(one.out.find("redislock:") == std::string::npos);
}

TEST_CASE("looks come when the lease that was seen has ended, and every now and then", "[exchange]") {
    Line one{request(Verb::acquire, 0, 3s), start};
    CHECK(one.exchange.look_at() == TimePoint::max());
    one.begin();
    one.take(number(200));
    CHECK(one.exchange.look_at() == start + 201ms);
    CHECK_FALSE(one.exchange.looked(busy_for(9'000), start + 201ms));
    CHECK(one.exchange.look_at() == start + 701ms);
    CHECK_FALSE(one.exchange.looked({Verdict::no, {Errc::no_expiry, {}}}, start + 701ms));
    CHECK(one.exchange.look_at() == start + 1'201ms);
}

TEST_CASE("a key that stays free over ten looks and a second, without a hand-off, means that the connection is dead",
          "[exchange]") {
    Line one{request(Verb::acquire, 0, 60s), start};
    one.begin();
    one.take(number(200));
    for (int look = 0; look < 9; ++look) CHECK_FALSE(one.exchange.looked(busy_for(-2), start + 1s));
    CHECK_FALSE(one.exchange.looked(busy_for(-7), start + 1'100ms)); // handed to somebody just now
    CHECK(one.exchange.looked(busy_for(-2), start + 2s).code == Errc::timed_out);

    Line held{request(Verb::acquire, 0, 60s), start};
    held.begin();
    held.take(number(200));
    for (int look = 0; look < 12; ++look) CHECK_FALSE(held.exchange.looked(busy_for(-2), start + 1s));
    CHECK_FALSE(held.exchange.looked(busy_for(5), start + 1'500ms)); // somebody has it, for a short lease
    CHECK_FALSE(held.exchange.looked(busy_for(-2), start + 2s));
}

TEST_CASE("who can have no other connection keeps his place, but not for longer than a release looks for him",
          "[exchange]") {
    const Answer nowhere{Verdict::no, {Errc::max_clients, {}}};
    Line one{request(Verb::acquire, 0, 60s), start};
    one.begin();
    one.take(number(9'000));
    CHECK_FALSE(one.exchange.looked(nowhere, start + 500ms));
    CHECK_FALSE(one.exchange.looked(nowhere, start + 1s));
    CHECK(one.exchange.looked(nowhere, start + 1'500ms).code == Errc::max_clients);

    Line last{request(Verb::acquire, 0, 2s), start}; // it would not be worth it
    last.begin();
    last.take(number(9'000));
    CHECK_FALSE(last.exchange.looked(nowhere, start + 1'500ms));
}

TEST_CASE("a server that does not answer a look is not waited for", "[exchange]") {
    Line one{request(Verb::acquire, 0, 60s), start};
    one.begin();
    one.take(number(200));
    CHECK(one.exchange.looked({Verdict::unknown, {Errc::timed_out, {}}}, start + 1s).code == Errc::timed_out);
}

TEST_CASE("what was seen of the holder is told where no answer comes", "[exchange]") {
    Line one{request(Verb::acquire, 0, 3s), start};
    one.begin();
    one.take(number(-1));
    const Answer answer = one.exchange.unanswered(Verdict::unknown, {Errc::timed_out, {}});
    CHECK((answer.verdict == Verdict::unknown && answer.why.code == Errc::no_expiry));
}

namespace {

/// The same of an exchange that says ASKING.
template <class Kind>
struct Asking : Conversation<AskingExchange> {
    template <class... Arguments>
    explicit Asking(const Request& what, Arguments&&... more)
        : Asking{std::make_shared<AwaitedQuestion>(what), std::forward<Arguments>(more)...} {}

    /// Takes the reply to ASKING, and then this one.
    Next take_both(const Reply& reply) {
        CHECK(take(ok()) == Next::more);
        return take(reply);
    }

private:
    template <class... Arguments>
    explicit Asking(const std::shared_ptr<AwaitedQuestion>& of, Arguments&&... more)
        : Conversation{of->request,
                       std::unique_ptr<Exchange>{std::make_unique<Kind>(of, std::forward<Arguments>(more)...)}} {}
};

} // namespace

TEST_CASE("ASKING goes before each command, for it holds for one", "[exchange][cluster]") {
    SECTION("an acquire") {
        Asking<CommandExchange> one{request(Verb::acquire), 0u};
        CHECK(one.begin() == Names{"ASKING", "SET"});
        CHECK(one.take_both(ok()) == Next::done);
        CHECK(one.exchange.take_answer().verdict == Verdict::yes);
    }
    SECTION("a script that is sent again in full") {
        Asking<CommandExchange> one{request(Verb::release), 0u};
        one.peer.knows_script.fill(true);
        CHECK(one.begin() == Names{"ASKING", "EVALSHA"});
        CHECK(one.take_both(noscript) == Next::resent);
        CHECK(one.sent() == Names{"ASKING", "EVAL"});
        CHECK(one.take_both(number(1)) == Next::done);
        CHECK(one.exchange.take_answer().verdict == Verdict::yes);
    }
    SECTION("what is asked in one write") {
        Holder holder{};
        Asking<InspectExchange> one{request(Verb::acquire), holder};
        CHECK(one.begin() == Names{"ASKING", "EVAL", "ASKING", "PTTL", "ASKING", "PTTL"});
        CHECK(one.take_both(text("somebody")) == Next::more);
        CHECK(one.take_both(number(100)) == Next::more);
        CHECK(one.take_both(number(-2)) == Next::done);
        CHECK((holder.value == "somebody" && holder.remaining == 100ms));
    }
    SECTION("the undo of a grant that too few replicas have, also where nobody waits for it any more") {
        Asking<CommandExchange> one{request(Verb::acquire, 1), 0u};
        one.begin();
        CHECK(one.take_both(ok()) == Next::count);
        CHECK(one.exchange.counted(number(0), one.out) == Next::resent);
        CHECK(one.sent() == Names{"ASKING", "EVAL"});
        CHECK(commands(one.exchange.undo()) == Names{"ASKING", "EVAL"});
        CHECK(one.take_both(number(1)) == Next::done);
        CHECK(one.exchange.take_answer().why.code == Errc::no_replicas);
    }
    SECTION("the proof that its release is taken, and what comes after it") {
        Asking<CommandExchange> one{request(Verb::acquire), 0u};
        one.peer.is_release_proven = false;
        CHECK(one.begin() == Names{"ASKING", "EVAL"});
        CHECK(one.exchange.is_proving());
        CHECK(one.take_both(number(-1)) == Next::resent);
        CHECK_FALSE(one.exchange.is_proving());
        CHECK(one.sent() == Names{"ASKING", "SET"});
    }
    SECTION("nothing, once its release has been sent behind it") {
        Asking<CommandExchange> one{request(Verb::acquire), 0u};
        one.peer.is_release_proven = false;
        one.begin();
        one.exchange.revoke();
        CHECK(one.take_both(number(-1)) == Next::done);
        CHECK(one.sent().empty());
        CHECK(one.exchange.take_answer().verdict == Verdict::no);
    }
    SECTION("whatever a key holds") {
        Request odd = request(Verb::acquire);
        for (const char* key : {"$3", "*1\r\n$6\r\nASKING\r\n", "\r\n$", "$5\r\n"}) {
            odd.key = key;
            odd.fencing = true;
            Asking<CommandExchange> one{odd, 0u};
            CHECK(one.begin() == Names{"ASKING", "EVAL"});
        }
    }
    SECTION("a wait in line") {
        Asking<LineExchange> one{request(Verb::acquire, 0, 1s), start};
        CHECK(one.begin() == Names{"ASKING", "EVALSHA"});
        CHECK(one.take_both(number(1000)) == Next::resent);
        CHECK(one.sent() == Names{"ASKING", "BLPOP", "ASKING", "SET"});
        CHECK(one.exchange.blocks());
        CHECK(one.take_both(array()) == Next::more);
        CHECK(one.take_both(ok()) == Next::done);
    }
    SECTION("a wait in line whose time is up, and that is given up then") {
        Asking<LineExchange> one{request(Verb::acquire, 0, 1s), start};
        one.begin();
        one.take_both(number(1000));
        one.sent();
        CHECK_FALSE(one.exchange.is_overdue(start + 1s, one.out));
        CHECK(one.sent() == Names{"ASKING", "PTTL"});
        CHECK(one.exchange.needs_undo());
        CHECK(commands(one.exchange.undo()) == Names{"ASKING", "EVAL"});
        const Answer answer = one.exchange.unanswered(Verdict::unknown, {Errc::timed_out, {}});
        CHECK((answer.verdict == Verdict::unknown && answer.was_held));
    }
}

TEST_CASE("who waits for the key may be granted it, which is undone if he is gone, and a turn alone is not",
          "[exchange]") {
    const auto question = [] { return std::make_shared<AwaitedQuestion>(request(Verb::acquire, 0, 1s)); };
    CHECK(LineExchange{question(), start}.needs_undo());
    CHECK_FALSE(LineExchange{question(), start, LineExchange::For::turn}.needs_undo());
}

TEST_CASE("who may not say ASKING is told so, and not that the key is elsewhere", "[exchange][cluster]") {
    Asking<CommandExchange> one{request(Verb::acquire), 0u};
    one.begin();
    CHECK(one.take(error("NOPERM this user has no permissions to run the 'asking' command")) == Next::more);
    CHECK(one.take(error("MOVED 3999 10.0.0.1:6379")) == Next::done);
    CHECK(one.exchange.take_answer().why.code == Errc::no_permission);
}

TEST_CASE("a place in line that is elsewhere says nothing of the lines of this node", "[exchange][cluster]") {
    const Reply moved = error("MOVED 3999 10.0.0.1:6379");
    Line refused{request(Verb::acquire, 0, 1s), start};
    refused.begin();
    CHECK(refused.take(moved) == Next::resent);
    CHECK(refused.peer.no_line_for.empty());
    CHECK(refused.take(moved) == Next::done);
    CHECK(refused.exchange.take_answer().verdict == Verdict::no);
    Line sent_away{request(Verb::acquire, 0, 1s), start};
    sent_away.begin();
    CHECK(sent_away.take(number(1000)) == Next::resent);
    CHECK(sent_away.take(moved) == Next::more);
    CHECK(sent_away.peer.no_line_for.empty());
    CHECK(sent_away.take(moved) == Next::done);
    CHECK(sent_away.exchange.take_answer().verdict == Verdict::no);
}
