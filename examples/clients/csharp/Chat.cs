// A chat client over WebSocket. .NET 6 or newer, or Mono 6; no package.
//
//     mcs -r:System.Runtime.Serialization Chat.cs && mono Chat.exe ws://HOST:PORT/v1/ws USER ROOM
//     dotnet run -- ws://HOST:PORT/v1/ws USER ROOM         (in a console project whose only source this is)
//
// Sends the lines of standard input and logs out at its end. CHINWAG_PASSWORD holds the password, if one is needed.
// Exit code 0: logged out. 1: refused, sent away or cut off. docs/clients.md explains each step.
using System;
using System.Collections.Concurrent;
using System.Collections.Generic;
using System.IO;
using System.Net.WebSockets;
using System.Runtime.Serialization;
using System.Runtime.Serialization.Json;
using System.Threading;
using System.Threading.Tasks;

[DataContract] public class Thing { // A command, reply or event. Null is left out; what we do not know, passed over.
    [DataMember(EmitDefaultValue = false)] public string type, user, password, room, text, escape;
    [DataMember(EmitDefaultValue = false)] public string code, message, reason;
    [DataMember(EmitDefaultValue = false)] public int? id, count, retry_ms, ping_every_ms;
    [DataMember(EmitDefaultValue = false)] public string[] users, joined, left;
}
public class Chat {
    static readonly DataContractJsonSerializer Json = new DataContractJsonSerializer(typeof(Thing));
    static readonly StreamWriter Out = new StreamWriter(Console.OpenStandardOutput()) { AutoFlush = true }; // UTF-8.
    readonly ClientWebSocket socket = new ClientWebSocket();
    readonly ConcurrentDictionary<int, TaskCompletionSource<Thing>> waiting =
        new ConcurrentDictionary<int, TaskCompletionSource<Thing>>();
    HashSet<string> here = new HashSet<string>();
    string user, escape;
    int lastId;

    public static void Main(string[] args) {
        if (args.Length != 3) End("Arguments: ws://HOST:PORT/v1/ws USER ROOM");
        try { new Chat().Talk(new Uri(args[0]), args[1], args[2]); }
        catch (AggregateException lost) { End("Lost: " + lost.GetBaseException().Message); }
    }
    void Talk(Uri server, string name, string room) {
        socket.ConnectAsync(server, CancellationToken.None).Wait();
        Listen().ContinueWith(over => End("Lost: " + over.Exception?.GetBaseException().Message));
        var password = Environment.GetEnvironmentVariable("CHINWAG_PASSWORD");
        var session = Granted(Ask(new Thing { type = "login", user = name, password = password }).Result);
        user = session.user; // As the server writes it.
        Ping(session.ping_every_ms ?? 0);
        Granted(Ask(new Thing { type = "join", room = room }).Result);
        var input = new StreamReader(Console.OpenStandardInput());
        for (string text; (text = input.ReadLine()) != null; ) {
            Thing answer;
            while ((answer = Ask(new Thing { type = "send", room = room, text = text }).Result).code == "rate_limited")
                Thread.Sleep(answer.retry_ms ?? 1000);
            if (answer.type == "error") Console.Error.WriteLine("! " + answer.message);
        }
        Ask(new Thing { type = "logout" }).Wait();
    }
    async void Ping(int every) {
        for (Task pong = Task.CompletedTask; every > 0; pong = Ask(new Thing { type = "ping" })) {
            await Task.Delay(every);
            if (!pong.IsCompleted) End("Lost: the server has fallen silent.");
        }
    }
    Task<Thing> Ask(Thing command) { // Sends it, one at a time; the answer comes later, and events in between.
        command.id = Interlocked.Increment(ref lastId);
        var answer = waiting.GetOrAdd(command.id.Value, new TaskCompletionSource<Thing>());
        var bytes = new MemoryStream();
        Json.WriteObject(bytes, command);
        var message = new ArraySegment<byte>(bytes.ToArray());
        lock (socket) socket.SendAsync(message, WebSocketMessageType.Text, true, CancellationToken.None).Wait();
        return answer.Task;
    }
    async Task Listen() {
        var buffer = new ArraySegment<byte>(new byte[4096]);
        for (var message = new MemoryStream(); socket.State == WebSocketState.Open; ) {
            var part = await socket.ReceiveAsync(buffer, CancellationToken.None);
            message.Write(buffer.Array, 0, part.Count);
            if (!part.EndOfMessage || message.Length == 0) continue; // It may come in pieces.
            Hear((Thing)Json.ReadObject(new MemoryStream(message.ToArray())));
            message.SetLength(0);
        }
    }
    void Hear(Thing said) {
        if (said.type == "bye") End(said.message, said.code == "logout" ? 0 : 1);
        if (said.type == "left" && said.reason != null) End("Taken out of the room: " + said.reason);
        if (said.users != null) Print("* " + said.count + " in " + said.room + ": " + string.Join(", ", said.users));
        if (said.type == "init") { escape = said.escape; here = new HashSet<string>(said.users) { user }; }
        var text = escape == "html" ? System.Net.WebUtility.HtmlDecode(said.text) : said.text;
        if (said.type == "message" && said.user != user) Print(said.user + ": " + (text ?? "(data)"));
        foreach (var name in said.type == "join" ? new[] { said.user } : said.joined ?? new string[0])
            if (here.Add(name)) Print("* " + name + " joined");
        foreach (var name in said.type == "leave" ? new[] { said.user } : said.left ?? new string[0])
            if (here.Remove(name)) Print("* " + name + " left");
        if (waiting.TryRemove(said.id ?? 0, out var answer)) answer.SetResult(said);
    }
    static void Print(string words) { // Whatever a text holds, it stays on its line and commands no terminal.
        Out.WriteLine(System.Text.RegularExpressions.Regex.Replace(words, @"\p{Cc}", " "));
    }
    static Thing Granted(Thing it) { if (it.type == "error") End("Refused: " + it.message); return it; }
    static void End(string words, int code = 1) { Console.Error.WriteLine(words); Environment.Exit(code); }
}
