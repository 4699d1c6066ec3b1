// What the README shows is what the examples compile, and what it tells of the library's tables is complete.
#include "catch.hpp"

#include <redislock/redislock.hpp>

#include <cctype>
#include <filesystem>
#include <fstream>
#include <regex>
#include <set>
#include <sstream>
#include <vector>

namespace {

const std::filesystem::path root = REDISLOCK_ROOT;

std::vector<std::string> lines_of(const std::string& file) {
    std::ifstream stream{root / file};
    REQUIRE(stream);
    std::vector<std::string> lines;
    for (std::string line; std::getline(stream, line);) lines.push_back(line);
    return lines;
}

/// What stands between two lines `// [name]`, without the indent that all of it has.
std::string snippet(const std::string& file, const std::string& name) {
    std::vector<std::string> inside;
    int marks = 0;
    for (const std::string& line : lines_of(file)) {
        if (line.find("// [" + name + "]") != line.npos)
            ++marks;
        else if (marks == 1)
            inside.push_back(line);
    }
    REQUIRE(marks == 2);
    std::size_t indent = 1000;
    for (const std::string& line : inside)
        if (!line.empty()) indent = std::min(indent, line.find_first_not_of(' '));
    std::string text;
    for (const std::string& line : inside) text += (line.empty() ? line : line.substr(indent)) + "\n";
    return text;
}

/// As the page that shows the document names its headings.
std::set<std::string> anchors_of(const std::string& file) {
    std::set<std::string> anchors;
    bool is_code = false;
    for (const std::string& line : lines_of(file)) {
        if (line.rfind("```", 0) == 0) is_code = !is_code;
        if (is_code) continue;
        const auto level = line.find_first_not_of('#');
        if (level == 0 || level == line.npos || line[level] != ' ') continue;
        std::string anchor = "#";
        for (const char c : line.substr(level + 1)) {
            const auto byte = static_cast<unsigned char>(c);
            if (std::isalnum(byte) || c == '-' || c == '_') anchor += static_cast<char>(std::tolower(byte));
            if (c == ' ') anchor += '-';
        }
        anchors.insert(anchor);
    }
    return anchors;
}

} // namespace

TEST_CASE("every link in the documents leads to a file, and to a heading, that there is", "[readme]") {
    int links = 0;
    for (const std::filesystem::path document :
         {"README.md", "examples/redis-flock/README.md", ".github/CONTRIBUTING.md", ".github/CHANGELOG.md"}) {
        const std::regex link{R"(\]\(([^)#: ]*)(#[^) ]*)?\))"};
        for (const std::string& line : lines_of(document.string()))
            for (std::sregex_iterator each{line.begin(), line.end(), link}, end; each != end; ++each, ++links) {
                const std::string file = (*each)[1], heading = (*each)[2];
                INFO(document << ": " << each->str());
                const auto leads_to = file.empty() ? document : (document.parent_path() / file).lexically_normal();
                REQUIRE(std::filesystem::exists(root / leads_to));
                if (!heading.empty()) CHECK(anchors_of(leads_to.string()).count(heading) == 1);
            }
    }
    CHECK(links > 20);
}

TEST_CASE("every piece of C++ in the README is cut from an example", "[readme]") {
    const std::vector<std::string> readme = lines_of("README.md");
    int pieces = 0;
    for (std::size_t i = 0; i < readme.size(); ++i) {
        if (readme[i] != "```cpp") continue;
        // The line before names it: <!-- examples/10_scoped_lock.cpp scoped_lock -->
        std::istringstream origin{readme.at(i - 1)};
        std::string open, file, name;
        REQUIRE(origin >> open >> file >> name);
        std::string shown;
        for (++i; readme.at(i) != "```"; ++i) shown += readme[i] + "\n";
        CHECK(shown == snippet(file, name));
        const bool has_literals = std::regex_search(shown, std::regex{"\\b[0-9]+(ms|s)\\b"});
        CHECK(has_literals == (shown.find("using namespace std::chrono_literals;") != shown.npos));
        ++pieces;
    }
    CHECK(pieces >= 3);
}

TEST_CASE("the README is short, and its tables name every option, outcome and version", "[readme]") {
    std::string all;
    const std::vector<std::string> readme = lines_of("README.md");
    for (const std::string& line : readme) all += line + "\n";
    CHECK(readme.size() < 300);
    for (const char* word :
         {"`ttl`", "`renew`", "`max_hold`", "`request_timeout`", "`retry_for`", "`drift`", "`max_retry_delay`",
          "`confirm_release`", "`client_name`", "`idle_connections`", "`restart_delay`", "`credentials`", "`resolver`",
          "`confirmed`", "`expired`", "`stolen`", "`unknown`", "`not_held`"})
        CHECK_THAT(all, containing(std::string{"| "} + word));
    for (const std::string& line : lines_of("include/redislock/errors.hpp")) {
        const auto comment = line.find("///< ");
        if (comment == line.npos || line.rfind("    ", 0) != 0) continue;
        const std::string code = line.substr(4, line.find_first_of(" ,=", 4) - 4);
        CHECK_THAT(all, containing("`" + code + "`"));
    }
    CHECK_THAT(all, !containing("guarantee"));
}
