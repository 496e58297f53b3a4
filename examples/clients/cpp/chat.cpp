// A chat client over TCP. C++17 on POSIX, with nlohmann/json for JSON (Debian: nlohmann-json3-dev).
//
//     g++ -std=c++17 -pthread -o chat chat.cpp && ./chat HOST PORT USER ROOM
//
// Sends the lines of standard input and logs out at its end. CHINWAG_PASSWORD holds the password, if one is needed.
// Exit code 0: logged out. 1: refused, sent away or cut off. docs/clients.md explains each step.
#include <netdb.h>
#include <chrono>
#include <future>
#include <iostream>
#include <map>
#include <mutex>
#include <nlohmann/json.hpp>
#include <thread>
using nlohmann::json, std::string, std::chrono::milliseconds, std::chrono::seconds;

int server; // The socket.
std::mutex guard; // Of what is written to it, and of these:
std::map<int, std::promise<json>> waiting;
string user;
json here; // Who is in the room, ourselves among them, as its keys.

// At once: a thread may still wait for standard input.
[[noreturn]] void end(const string &words, int code = 1) { std::cerr << words << std::endl, std::_Exit(code); }
void dial(const char *host, const char *port) {
    addrinfo hints{}, *found = nullptr;
    hints.ai_socktype = SOCK_STREAM;
    for (getaddrinfo(host, port, &hints, &found); found; found = found->ai_next) {
        server = socket(found->ai_family, found->ai_socktype, 0);
        if (connect(server, found->ai_addr, found->ai_addrlen) == 0) return;
    }
    end("Lost: nobody answers there.");
}
/// Sends a command and waits for its answer; `receive` takes what comes in between.
json ask(json command, bool required = false) {
    static int last_id = 0;
    std::unique_lock lock(guard);
    command["id"] = ++last_id;
    auto coming = waiting[last_id].get_future();
    const auto line = command.dump(-1, ' ', true, json::error_handler_t::replace) + "\n"; // Also what is no UTF-8.
    if (send(server, line.data(), line.size(), MSG_NOSIGNAL) < 0) end("Lost: the connection is closed.");
    lock.unlock();
    if (coming.wait_for(seconds(30)) != std::future_status::ready) end("Lost: the server has fallen silent.");
    const json answer = coming.get();
    if (required && answer["type"] == "error") end("Refused: " + answer.value("message", ""));
    return answer;
}
void print(string text) { // Whatever it holds, it stays on its line and commands no terminal.
    for (size_t i = 0; i < text.size(); ++i) {
        const unsigned char byte = text[i], next = text[i + 1];
        if (byte < ' ' || byte == 0x7f || (byte == 0xc2 && next < 0xa0)) text.replace(i, byte == 0xc2 ? 2 : 1, " ");
    }
    std::cout << text << std::endl;
}
void hear(const json &said) {
    static bool escaped = false;
    static const string codes[][2] = {{"&lt;", "<"}, {"&gt;", ">"}, {"&quot;", "\""}, {"&#39;", "'"}, {"&amp;", "&"}};
    const string type = said["type"], who = said.value("user", "");
    string text = said.value("text", "(data)"), names;
    const auto list = [&](auto one, auto field) { return type == one ? json{who} : said.value(field, json::array()); };
    for (const auto &[code, is] : codes)
        for (size_t i = 0; escaped && (i = text.find(code, i)) != string::npos; ++i) text.replace(i, code.size(), is);
    const std::lock_guard lock(guard);
    if (type == "bye") end(said["message"], said["code"] == "logout" ? 0 : 1);
    if (type == "left" && said.contains("reason")) end("Taken out of the room: " + said.value("reason", ""));
    if (type == "session") user = who; // As the server writes it.
    if (type == "init") here = {{user, 1}}, escaped = said.value("escape", "") == "html";
    for (const string name : list("", "users")) here.emplace(name, 1), names += " " + name;
    if (type == "init") print("* " + said["count"].dump() + " in " + said.value("room", "") + ":" + names);
    if (type == "message" && who != user) print(who + ": " + text);
    for (const string name : list("join", "joined")) if (here.emplace(name, 1).second) print("* " + name + " joined");
    for (const string name : list("leave", "left")) if (here.erase(name)) print("* " + name + " left");
    const auto asked = waiting.extract(said.value("id", 0));
    if (asked) asked.mapped().set_value(said);
}
void receive() {
    char *line = nullptr;
    FILE *in = fdopen(server, "r");
    for (size_t size = 0; getline(&line, &size, in) > 0;) hear(json::parse(line));
    end("Lost: the connection is closed.");
}
void ping(milliseconds every) { for (;; ask({{"type", "ping"}})) std::this_thread::sleep_for(every); }
int main(int count, char **args) {
    if (count != 5) end("Arguments: HOST PORT USER ROOM");
    dial(args[1], args[2]);
    std::thread(receive).detach();
    json login = {{"type", "login"}, {"user", args[3]}}, answer;
    if (const char *password = getenv("CHINWAG_PASSWORD")) login["password"] = password;
    const int every = ask(login, true)["ping_every_ms"];
    if (every > 0) std::thread(ping, milliseconds(every)).detach();
    ask({{"type", "join"}, {"room", args[4]}}, true);
    for (string text; std::getline(std::cin, text);) {
        const json line = {{"type", "send"}, {"room", args[4]}, {"text", text}};
        while ((answer = ask(line)).value("code", "") == "rate_limited")
            std::this_thread::sleep_for(milliseconds(answer["retry_ms"]));
        if (answer["type"] == "error") std::cerr << "! " << answer.value("message", "") << std::endl;
    }
    ask({{"type", "logout"}});
}
