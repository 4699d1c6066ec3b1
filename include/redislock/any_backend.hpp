/// One type for every backend, so that code that takes locks need not be a template. tests/memory_test.cpp goes red if
/// it is wrong.
#pragma once

#include "backend.hpp"
#include "detail/system/lifetime.hpp"
#include "inspect.hpp"

#include <memory>

namespace redislock {

/// Passes on what it is asked to a backend that it refers to, and that must outlive it and its locks: a Redis, a
/// Quorum, a Cluster or a Memory. `RedisLock<AnyBackend>` is a lock there, for some nanoseconds more. It is as
/// thread-safe as the other, and neither copied nor moved.
class AnyBackend {
public:
    static constexpr bool has_fencing_tokens = true;

    template <FencingBackend B>
    requires(!std::same_as<B, AnyBackend>) && requires(B& backend, const Deadline& deadline, Holder& holder) {
        backend.inspect(std::string_view{}, deadline, holder);
    }
    AnyBackend(B& backend) : backend_{std::make_unique<Of<B>>(backend)} {}

    AnyBackend(const AnyBackend&) = delete;
    AnyBackend& operator=(const AnyBackend&) = delete;

    TimePoint now() const noexcept { return backend_->now(); }
    Token fresh() { return backend_->fresh(); }
    void pause(const Deadline& until) noexcept { backend_->pause(until); }
    Answer ask(const Request& request) { return backend_->ask(request); }
    void keep(const std::shared_ptr<detail::WorkerTask>& task, TimePoint when) { backend_->keep(task, when); }
    void drop(detail::WorkerTask& task) noexcept { backend_->drop(task); }
    Answer inspect(std::string_view key, const Deadline& deadline, Holder& holder) {
        return backend_->inspect(key, deadline, holder);
    }
    void check_ttl(Millis ttl) const { backend_->check_ttl(ttl); }
    bool may_move() const noexcept { return backend_->may_move(); }
    bool is_contended(std::string_view key) const noexcept { return backend_->is_contended(key); }

    /// For those that it must outlive.
    detail::Life life() const noexcept { return lifetime_.life(); }

private:
    struct Any {
        virtual ~Any() = default;
        virtual TimePoint now() const noexcept = 0;
        virtual Token fresh() = 0;
        virtual void pause(const Deadline& until) noexcept = 0;
        virtual Answer ask(const Request& request) = 0;
        virtual void keep(const std::shared_ptr<detail::WorkerTask>& task, TimePoint when) = 0;
        virtual void drop(detail::WorkerTask& task) noexcept = 0;
        virtual Answer inspect(std::string_view key, const Deadline& deadline, Holder& holder) = 0;
        virtual void check_ttl(Millis ttl) const = 0;
        virtual bool may_move() const noexcept = 0;
        virtual bool is_contended(std::string_view key) const noexcept = 0;
    };

    template <class B>
    class Of final : public Any {
    public:
        explicit Of(B& backend) : backend_{backend}, life_{detail::life_of(backend)} {}

        TimePoint now() const noexcept override { return there().now(); }
        Token fresh() override { return there().fresh(); }
        void pause(const Deadline& until) noexcept override { there().pause(until); }
        Answer ask(const Request& request) override { return there().ask(request); }
        void keep(const std::shared_ptr<detail::WorkerTask>& task, TimePoint when) override {
            there().keep(task, when);
        }
        void drop(detail::WorkerTask& task) noexcept override { there().drop(task); }
        Answer inspect(std::string_view key, const Deadline& deadline, Holder& holder) override {
            return there().inspect(key, deadline, holder);
        }
        void check_ttl(Millis ttl) const override { detail::check_ttl(there(), ttl); }
        bool may_move() const noexcept override { return detail::may_move(there()); }
        bool is_contended(std::string_view key) const noexcept override { return detail::is_contended(there(), key); }

    private:
        B& there() const noexcept {
            detail::check_life(backend_, life_);
            return backend_;
        }

        B& backend_;
        const detail::Life life_;
    };

    const detail::Lifetime lifetime_{};
    const std::unique_ptr<Any> backend_;
};

static_assert(FencingBackend<AnyBackend>);

} // namespace redislock
