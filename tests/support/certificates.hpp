/// Certificates for servers of one's own, made by the openssl program in a temporary folder: an authority, and what it
/// has signed.
#pragma once

#include "temporary_folder.hpp"

#include <cstdlib>
#include <fstream>
#include <vector>

namespace test {

class Certificates {
public:
    explicit Certificates(const std::vector<std::string>& names = {"server", "other", "client", "expired"}) {
        make("ca.pem", "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=redislock"
                       " -keyout " +
                           file("ca.key"));
        for (const std::string& name : names)
            sign(name, name == "server" || name == "expired" ? "DNS:localhost,IP:127.0.0.1" : "DNS:" + name + ".test",
                 name == "expired" ? "-1" : "2");
    }

    std::string file(const std::string& name) const { return folder_.path() / name; }

    /// How redis-server is told to have the certificate of that name at the port, and to ask for clients' or not.
    std::vector<std::string> at_port(int port, const std::string& name, const char* clients = "no") const {
        return {"--tls-port",        std::to_string(port), "--tls-cert-file", file(name + ".pem"),  "--tls-key-file",
                file(name + ".key"), "--tls-ca-cert-file", file("ca.pem"),    "--tls-auth-clients", clients};
    }

private:
    void make(const std::string& what, const std::string& arguments) const {
        const std::string command = "openssl " + arguments + " -out " + file(what) + " 2>" + file("log");
        if (std::system(command.c_str()) != 0) throw std::runtime_error{"openssl is needed: " + command};
    }
    void sign(const std::string& name, const std::string& names, const std::string& days) const {
        std::ofstream{file("names")} << "subjectAltName=" << names << '\n';
        make(name + ".csr", "req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=" + name +
                                " -keyout " + file(name + ".key"));
        make(name + ".pem", "x509 -req -in " + file(name + ".csr") + " -CA " + file("ca.pem") + " -CAkey " +
                                file("ca.key") + " -CAcreateserial -days " + days + " -extfile " + file("names"));
    }

    TemporaryFolder folder_;
};

} // namespace test
