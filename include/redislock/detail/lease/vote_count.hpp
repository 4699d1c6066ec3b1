/// How the votes of several nodes on one question are counted, and what they amount to. It knows neither the nodes nor
/// how they are asked; tests/quorum_test.cpp and tests/simulation_test.cpp go red if it is wrong.
#pragma once

#include "request.hpp"

#include <bit>
#include <memory>
#include <utility>

namespace redislock::detail {

/// What the trouble is with several servers: the code of the last, or of a refusal, for that tells more, and the
/// details of all. Failures with another code come first, each with the sentence of its code.
inline void add_trouble(Failure& all, const Failure& one) {
    const auto in_full = [](const Failure& why) { return why.detail + ": " + why.code.message() + "; "; };
    if (!one) return;
    if (!all)
        all = one;
    else if (all.code == one.code)
        all.detail += "; " + one.detail;
    else if (Answer{Verdict::no, all}.is_trouble())
        all = {one.code, in_full(all) + one.detail};
    else
        all.detail.insert(0, in_full(one));
}

/// Why nothing has a majority: how many have no vote, and what the trouble was with those that have told.
inline Failure no_majority(std::size_t failed, std::size_t nodes, const Failure& trouble) {
    const std::string count = std::to_string(failed) + " of " + std::to_string(nodes) + " servers failed";
    if (!trouble) return {Errc::timed_out, count};
    return {trouble.code, trouble.detail.empty() ? count : count + "; " + trouble.detail};
}

/// The votes on one question, of as many nodes as there are, and what they amount to.
class VoteCount : public Question {
public:
    VoteCount(unsigned nodes, Request what)
        : Question{std::move(what)}, nodes_{nodes}, majority_{nodes / 2 + 1}, counted_{votes()} {}

    void count(std::size_t node, const Answer& answer) {
        ++counted_;
        if (answer.verdict == Verdict::no) may_have_ &= ~(Nodes{1} << node);
        if (answer.verdict == Verdict::yes) {
            yes_ |= Nodes{1} << node;
            agreeing_ = answer.fencing_token == fencing_token_  ? agreeing_ + 1
                        : answer.fencing_token > fencing_token_ ? 1
                                                                : agreeing_;
            fencing_token_ = std::max(fencing_token_, answer.fencing_token);
            return;
        }
        if (answer.is_busy()) {
            if (busy_++ == 0 || answer.why.code != Errc::busy) why_busy_ = answer.why;
            if (answer.holder_left) left_ = std::max(left_.value_or(Millis::zero()), *answer.holder_left);
        } else if (answer.verdict == Verdict::no && answer.why.code == Errc::expired) {
            ++expired_;
        } else if (answer.verdict == Verdict::no && answer.why.code == Errc::stolen) {
            ++stolen_;
        } else {
            sent_ |= answer.verdict == Verdict::unknown;
            troubled_ += request.nodes >> node & 1;
            add_trouble(trouble_, answer.why);
        }
    }

    /// That the votes still to come can't change what they amount to.
    bool is_decided() const noexcept {
        const unsigned open = nodes_ - counted_;
        if (is_won() || given_up_ || open == 0) return true;
        if (request.verb == Verb::acquire) // lost, and known for what reason
            return votes() + open < majority_ && (votes() + busy_ >= majority_ || votes() + busy_ + open < majority_);
        return is_gone() || (votes() + open < majority_ && !cannot_win(expired_ + stolen_ + open));
    }

    /// What they amount to, once that is decided.
    Answer result() const {
        if (is_won()) return {.verdict = Verdict::yes, .fencing_token = fencing_token_};
        if (request.verb == Verb::acquire) {
            if (busy_ > 0 && votes() + busy_ >= majority_) return {Verdict::no, why_busy_, left_};
        } else if (is_gone()) {
            return {Verdict::no, {stolen_ >= expired_ ? Errc::stolen : Errc::expired, {}}};
        }
        const bool is_over = given_up_ || !is_decided(); // then those still to come are late
        const unsigned heard = is_over ? nodes_ : counted_;
        const bool has_won_some = (yes_ & ~request.released) != 0;
        return {.verdict = sent_ || has_won_some || counted_ < nodes_ ? Verdict::unknown : Verdict::no,
                .why = no_majority(heard - votes() - busy_ - expired_ - stolen_, nodes_, trouble_),
                .released = request.verb == Verb::release ? yes_ : Nodes{0}};
    }

    /// How many have said yes, now or before; and whether all have answered, or will not.
    unsigned votes() const noexcept { return static_cast<unsigned>(std::popcount(yes_)); }
    bool is_complete() const noexcept { return counted_ == nodes_; }

    /// Of an extension or a release: a majority says that the key is gone. Or, of a release that was asked for before,
    /// those who may still have the key are too few to make up a majority with those who have carried it out: what
    /// became of it at the others will not be known.
    bool is_gone() const noexcept {
        const unsigned open = nodes_ - counted_;
        return cannot_win(expired_ + stolen_) || (request.released != 0 && votes() + troubled_ + open < majority_);
    }

    /// Whether a majority has said the number that is the grant's.
    bool agrees_on_fencing_token() const noexcept { return agreeing_ >= majority_; }

    /// Before a vote is taken back that may have been given, or may be yet: the votes can't be won any more. False: it
    /// has been won. Then the vote belongs to a lease that is held, and renewals count on it; it is released with the
    /// lease.
    bool gives_up() noexcept override {
        if (!is_won()) given_up_ = true;
        return given_up_;
    }

    /// Who did what was asked for, or may do so yet.
    Nodes may_have() const noexcept { return may_have_; }

    /// A majority has said yes, and it is not taken back.
    bool is_won() const noexcept { return votes() >= majority_ && !given_up_; }

private:
    /// With so many against it, there is no majority for it.
    bool cannot_win(unsigned against) const noexcept { return against > nodes_ - majority_; }

    const unsigned nodes_, majority_;
    Nodes yes_ = request.released;
    unsigned counted_, busy_ = 0, expired_ = 0, stolen_ = 0, agreeing_ = 0;
    unsigned troubled_ = 0; ///< those who may have the key, and have not said what became of it
    Nodes may_have_ = all_nodes;
    bool sent_ = false, given_up_ = false;
    std::uint64_t fencing_token_ = 0;
    std::optional<Millis> left_{};
    Failure why_busy_{}, trouble_{};
};

} // namespace redislock::detail
