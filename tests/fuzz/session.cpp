// Whole conversations with a server that answers as the input tells it: in pieces, late, never, with any other bytes
// before or behind, or by hanging up. They go through real sockets, in one thread: when the library would wait, the
// server acts, and where it has nothing to do, the time passes. The library's own thread, which closes the connections
// that were given up, waits in real time. Redis is the way that blocks, its Link the one that does not.
#include "fuzz.hpp"

#include <redislock/redis.hpp>

#include <sys/syscall.h>

#include <atomic>
#include <deque>

using namespace redislock;
using fuzz::claim;

namespace {

/// Of the clock of leases; it goes on a little with every look at it, so that nobody looks for ever.
std::atomic<std::chrono::nanoseconds> the_time{};
thread_local bool passes_time = false; ///< in this thread: of it there is one

void pass(std::chrono::nanoseconds time) { the_time = the_time.load() + time; }

enum class Fate { granted, refused, unknown_script, error };

/// One that is asked, and what became of it on both sides.
struct Question {
    Question(std::uint64_t nth, fuzz::Input& input)
        : token{Token::from_bits(nth, nth)}, number{1'000'000 + nth}, request{static_cast<Verb>(input.below(3)), "k",
                                                                              token, Millis{1000}, TimePoint{}},
          fate{static_cast<Fate>(input.below(4))} {
        const unsigned manner = input.byte();
        const bool is_acquire = request.verb == Verb::acquire;
        limit = Millis{input.byte()};
        request.fencing = is_acquire && (manner & 1) != 0;
        request.patience = Millis{is_acquire ? manner / 64 * 20 : 0};
        request.recheck = Millis{20};
        request.replicas = request.verb != Verb::release ? manner / 2 % 4 : 0;
        request.wants_answer = request.verb != Verb::release || (manner & 1) != 0;
    }
    Question(const Question&) = delete;
    Question& operator=(const Question&) = delete;

    const Request& from_now_on() {
        request.deadline = later(detail::now(), limit);
        return request;
    }

    Token token;
    std::uint64_t number; ///< of the grant, if it is to be numbered
    Request request;
    Millis limit{};
    Fate fate;
    int answers = 0;
    Answer answer{Verdict::unknown};
    bool done = false;  ///< by the server: granted, extended or released
    bool held = false;  ///< an acquire that is done, and not undone
    bool clear = false; ///< it came over a connection on which the server said nothing but its answers
};

class Server {
public:
    Server() : listening_{::socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)} {
        sockaddr_un address{};
        address.sun_family = AF_UNIX;
        path().copy(address.sun_path, path().size());
        claim(::bind(listening_, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0 &&
                  ::listen(listening_, 64) == 0,
              "there is a socket");
    }

    /// In the namespace that needs no file.
    static std::string path() { return std::string{'\0'} + "redislock-fuzz-" + std::to_string(::getpid()); }

    void begin(fuzz::Input& script, std::deque<Question>& questions, unsigned replicas) {
        script_ = &script;
        questions_ = &questions;
        replicas_ = replicas;
        peers_.clear();
    }

    /// One step, while the library waits for at most so long, or `between` its questions. False: there is nothing to be
    /// done.
    bool act(std::chrono::nanoseconds limit, bool between) {
        take_in();
        if (script_->empty()) return answer_all();
        const unsigned step = script_->byte();
        if (peers_.empty()) return true;
        Peer& peer = peers_[step / 8 % peers_.size()];
        switch (step % 8) {
        case 0: peer.send(1 + script_->byte()); break;
        case 1: pass(std::min<std::chrono::nanoseconds>(limit, Millis{script_->byte()})); break;
        case 2: peer.say(script_->bytes(script_->below(64)), between); break;
        case 3: {
            const bool owes = peer.send(peer.out.size());
            peer.say(script_->bytes(script_->below(64)), between && !owes);
            break;
        }
        case 4: peer.say(std::string(script_->byte() * std::size_t{1000}, 'x'), between); break;
        case 5: peer.hang_up(); break;
        default: answer_all();
        }
        return true;
    }

    /// When the library has closed all connections.
    void end() {
        take_in();
        const bool all_clear =
            std::none_of(peers_.begin(), peers_.end(), [](const Peer& peer) { return peer.babbled; });
        for (Question& question : *questions_) question.clear = all_clear;
        for (const Peer& peer : peers_)
            for (Question* question : peer.carried) question->clear = !peer.babbled;
        peers_.clear();
    }

private:
    struct FreeReader {
        void operator()(redisReader* reader) const noexcept { ::redisReaderFree(reader); }
    };

    struct Peer {
        detail::Descriptor socket;
        std::unique_ptr<redisReader, FreeReader> reader{::redisReaderCreate()};
        std::string out{};                ///< answers that are not sent yet
        bool babbled = false;             ///< the server has said what was not asked
        bool spoilt = false;              ///< and that between two questions, so that there must be no more
        std::vector<Question*> carried{}; ///< over this connection

        bool send(std::size_t count) {
            const ssize_t sent =
                ::send(socket.fd(), out.data(), std::min(count, out.size()), MSG_NOSIGNAL | MSG_DONTWAIT);
            if (sent > 0) out.erase(0, static_cast<std::size_t>(sent));
            return !out.empty();
        }
        void say(std::string_view bytes, bool between) {
            if (!socket || bytes.empty()) return;
            spoilt = spoilt || (between && out.empty() && !babbled);
            babbled = true;
            ::send(socket.fd(), bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
        }
        void hang_up() {
            socket = {};
            out.clear();
        }
    };

    void take_in() {
        for (int fd = 0; (fd = ::accept4(listening_, nullptr, nullptr, SOCK_CLOEXEC)) >= 0;)
            peers_.push_back({detail::Descriptor{fd}});
        for (Peer& peer : peers_) {
            char bytes[16 * 1024];
            for (ssize_t got = 0; (got = ::recv(peer.socket.fd(), bytes, sizeof bytes, MSG_DONTWAIT)) > 0;) {
                claim(!peer.spoilt, "a connection that is out of step is not used for another question");
                ::redisReaderFeed(peer.reader.get(), bytes, static_cast<std::size_t>(got));
            }
            for (void* command = nullptr;;) {
                claim(::redisReaderGetReply(peer.reader.get(), &command) == REDIS_OK, "what is sent are commands");
                if (command == nullptr) break;
                const std::unique_ptr<redisReply, decltype(&::freeReplyObject)> owner{static_cast<redisReply*>(command),
                                                                                      &::freeReplyObject};
                std::vector<std::string> words;
                for (std::size_t i = 0; i < owner->elements; ++i)
                    words.emplace_back(owner->element[i]->str, static_cast<std::size_t>(owner->element[i]->len));
                peer.out += answer(peer, words);
            }
        }
    }

    /// False: there was none.
    bool answer_all() {
        bool any = false;
        for (Peer& peer : peers_) {
            const std::size_t before = peer.out.size();
            peer.send(before);
            any = any || peer.out.size() < before;
        }
        return any;
    }

    std::string answer(Peer& peer, const std::vector<std::string>& words) {
        using namespace detail;
        const std::string& word = words.at(0);
        if (word == "AUTH" || word == "SELECT" || word == "CLIENT") return "+OK\r\n";
        if (word == "WAIT") return ":" + std::to_string(replicas_) + "\r\n";
        if (word == "BLPOP") return "*2\r\n$1\r\nt\r\n$0\r\n\r\n";
        if (word == "GET") return "$5\r\nvalue\r\n";
        if (word == "PTTL") return ":50\r\n";
        const bool by_sha = word == "EVALSHA";
        const std::string& script = words.at(1);
        if (script == announce_sha || script == announce_script) return ":50\r\n";
        if (script == inspect_script) return "$5\r\nvalue\r\n";
        const bool is_delete = word == "DELIFEQ" || word == "DELEX"; // an error said that there are no scripts
        const std::string& token = words.at(word == "SET" || word == "DELIFEQ" ? 2 : word == "DELEX" ? 3 : 4);
        if (token == Token{}.hex()) // it is tried whether a release is permitted
            return questions_->back().fate == Fate::error ? "-OOM command not allowed\r\n" : ":0\r\n";
        Question& question = asked(token);
        peer.carried.push_back(&question);
        if (by_sha && question.fate == Fate::unknown_script) return "-NOSCRIPT No matching script.\r\n";
        if (is_delete || script == release_sha || script == release_script || script == bare_release_script) {
            question.held = false;
            if (question.request.verb != Verb::release) return ":1\r\n"; // an undo
        }
        if (question.fate == Fate::error) return "-OOM command not allowed\r\n";
        const bool is_acquire = question.request.verb == Verb::acquire;
        if (question.fate == Fate::refused) return word == "SET" ? "$-1\r\n" : is_acquire ? ":-101\r\n" : ":0\r\n";
        question.done = true;
        question.held = is_acquire;
        if (!is_acquire) return word == "SET" ? "+OK\r\n" : ":1\r\n";
        return question.request.fencing ? ":" + std::to_string(question.number) + "\r\n" : "+OK\r\n";
    }

    Question& asked(std::string_view token) {
        const auto found = std::find_if(questions_->begin(), questions_->end(),
                                        [&](const Question& question) { return question.token.hex() == token; });
        claim(found != questions_->end(), "the token is one of ours");
        return *found;
    }

    int listening_;
    fuzz::Input* script_ = nullptr;
    std::deque<Question>* questions_ = nullptr;
    unsigned replicas_ = 0;
    std::deque<Peer> peers_;
};

Server& server() {
    static Server instance;
    return instance;
}

void answered(Question& question, const Answer& answer) {
    question.answer = answer;
    claim(++question.answers == 1, "a question is answered once");
    claim(detail::now() <= later(question.request.deadline.at, Millis{5}), "it is answered by its deadline");
}

void ask_and_wait(Redis& redis, std::deque<Question>& questions) {
    for (Question& question : questions) {
        server().act({}, true);
        answered(question, redis.ask(question.from_now_on()));
    }
    server().act({}, true);
    const Deadline deadline = later(detail::now(), Millis{100});
    Holder holder;
    redis.inspect("k", deadline, holder);
    claim(detail::now() <= later(deadline.at, Millis{5}), "who holds a key is told by the deadline");
}

struct Asked : detail::Question {
    explicit Asked(::Question& of) : detail::Question{of.request}, question{of} {}
    ::Question& question;
    void answered(std::size_t, Answer answer) override { ::answered(question, answer); }
};

void send_and_advance(Redis& redis, std::deque<Question>& questions, bool all_at_once) {
    std::array<Redis::Link, 1> links{Redis::Link{redis}};
    auto& link = links.front();
    for (Question& question : questions) {
        if (link.owed() == 0) server().act({}, true);
        question.from_now_on();
        link.send(std::make_shared<Asked>(question));
        for (link.advance(detail::now()); !all_at_once && question.answers == 0; link.advance(detail::now()))
            link.wait({TimePoint::max()}, links);
    }
    const auto is_open = [](const Question& question) { return question.answers == 0; };
    for (; std::any_of(questions.begin(), questions.end(), is_open); link.advance(detail::now()))
        link.wait({TimePoint::max()}, links);
}

void judge(const Question& question) {
    claim(question.answers == 1, "every question is answered");
    const bool yes = question.answer.verdict == Verdict::yes;
    const bool is_acquire = question.request.verb == Verb::acquire;
    if (!question.clear) return;
    claim(!yes || question.done, "a yes is the answer to what was done, and not to another question");
    claim(question.answer.fencing_token == (yes && question.request.fencing ? question.number : 0),
          "the number is its own");
    claim(question.answer.verdict != Verdict::no || !is_acquire || !question.held, "after a no nothing is held");
}

} // namespace

extern "C" int clock_gettime(clockid_t clock, timespec* into) noexcept {
    if (clock != CLOCK_BOOTTIME) return static_cast<int>(::syscall(SYS_clock_gettime, clock, into));
    if (passes_time) pass(std::chrono::microseconds{20});
    const auto time = the_time.load().count();
    *into = {time / 1'000'000'000, time % 1'000'000'000};
    return 0;
}

extern "C" int sched_yield() noexcept { return 0; }

extern "C" int poll(pollfd* entries, nfds_t count, int timeout) {
    if (!passes_time) {
        const timespec limit{timeout / 1000, timeout % 1000 * 1'000'000};
        return ::ppoll(entries, count, timeout < 0 ? nullptr : &limit, nullptr);
    }
    for (const auto end = the_time.load() + Millis{timeout};;) {
        const timespec at_once{};
        const int ready = ::ppoll(entries, count, &at_once, nullptr);
        if (ready != 0 || the_time.load() >= end) return ready;
        if (!server().act(end - the_time.load(), false)) the_time = end;
    }
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    passes_time = true;
    fuzz::Input input{data, size};
    const unsigned flags = input.byte();
    Address address;
    address.path = Server::path();
    address.path.resize(sizeof sockaddr_un::sun_path - 1); // such a name has a length, and resolve() takes all of it
    if (flags & 1) address.password = "sesame";
    if (flags & 2) address.db = 1;
    std::deque<Question> questions;
    server().begin(input, questions, flags >> 6);
    {
        Redis redis{address, {.client_name = flags & 4 ? "fuzz" : ""}};
        for (unsigned nth = 0, count = 1 + input.below(4); nth < count; ++nth) questions.emplace_back(nth, input);
        if (flags & 8)
            ask_and_wait(redis, questions);
        else
            send_and_advance(redis, questions, flags & 16);
    }
    server().end();
    for (const Question& question : questions) judge(question);
    return 0;
}
