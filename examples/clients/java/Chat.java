// A chat client over WebSocket. Java 17 or newer, and Gson 2.10 for JSON, which the JDK lacks (libgoogle-gson-java).
//
//     java -cp /usr/share/java/gson.jar Chat.java ws://HOST:PORT/v1/ws USER ROOM
//
// Sends the lines of standard input and logs out at its end. CHINWAG_PASSWORD holds the password, if one is needed.
// Exit code 0: logged out. 1: refused, sent away or cut off. docs/clients.md explains each step.
import static java.nio.charset.StandardCharsets.UTF_8;
import static java.util.concurrent.TimeUnit.MILLISECONDS;
import com.google.gson.*;
import java.io.*;
import java.net.URI;
import java.net.http.*;
import java.util.*;
import java.util.concurrent.*;

public final class Chat implements WebSocket.Listener {
    /** Any reply or event. What it lacks is null or 0, what we do not know is passed over. */
    record Said(String type, int id, String code, String message, Integer retry_ms, String user, int ping_every_ms,
        String room, int count, String escape, String text, String reason,
        String[] users, String[] joined, String[] left) {}
    private final PrintStream out = new PrintStream(new FileOutputStream(FileDescriptor.out), true, UTF_8);
    private final Map<Integer, CompletableFuture<Said>> waiting = new ConcurrentHashMap<>();
    private final StringBuilder message = new StringBuilder();
    private CompletableFuture<WebSocket> sending;
    private int lastId;
    private Set<String> here = new HashSet<>();
    private boolean escaped;
    private volatile String user;

    public static void main(String[] args) throws Exception {
        if (args.length != 3) end("Arguments: ws://HOST:PORT/v1/ws USER ROOM", 1);
        new Chat().talk(URI.create(args[0]), args[1], args[2]);
    }

    private void talk(URI server, String name, String room) throws Exception {
        sending = HttpClient.newHttpClient().newWebSocketBuilder().buildAsync(server, this);
        sending.exceptionally(error -> end("Lost: " + error.getMessage(), 1));
        var session = granted(ask("login", "user", name, "password", System.getenv("CHINWAG_PASSWORD")).get());
        user = session.user; // As the server writes it.
        int every = session.ping_every_ms;
        Runnable ping = () -> ask("ping").orTimeout(every, MILLISECONDS).exceptionally(late -> end("Lost.", 1));
        if (every > 0) Executors.newScheduledThreadPool(1).scheduleAtFixedRate(ping, every, every, MILLISECONDS);
        granted(ask("join", "room", room).get());
        var in = new BufferedReader(new InputStreamReader(System.in, UTF_8));
        for (String text; (text = in.readLine()) != null; ) {
            Said answer;
            while ("rate_limited".equals((answer = ask("send", "room", room, "text", text).get()).code))
                Thread.sleep(answer.retry_ms);
            if (answer.code != null) System.err.println("! " + answer.message);
        }
        ask("logout");
    }

    /** Sends a command with its fields; the answer comes later, whatever events arrive in between. */
    private synchronized CompletableFuture<Said> ask(String type, String... fields) {
        var command = new JsonObject();
        command.addProperty("type", type);
        command.addProperty("id", ++lastId);
        for (int i = 0; i < fields.length; i += 2) command.addProperty(fields[i], fields[i + 1]); // Not if null.
        var answer = waiting.computeIfAbsent(lastId, id -> new CompletableFuture<>());
        sending = sending.thenCompose(socket -> socket.sendText(new Gson().toJson(command), true)); // One at a time.
        return answer;
    }

    @Override public CompletionStage<?> onText(WebSocket socket, CharSequence part, boolean last) {
        message.append(part);
        if (last) hear(new Gson().fromJson(message.toString(), Said.class)); // It may come in pieces.
        if (last) message.setLength(0);
        return WebSocket.Listener.super.onText(socket, part, last); // Asks for more.
    }
    @Override public CompletionStage<?> onClose(WebSocket socket, int code, String why) { return end("Lost.", 1); }
    @Override public void onError(WebSocket socket, Throwable error) { end("Lost: " + error, 1); }

    private void hear(Said said) {
        switch (said.type) {
            case "bye" -> end(said.message, said.code.equals("logout") ? 0 : 1);
            case "left" -> { if (said.reason != null) end("Taken out of the room: " + said.reason, 1); }
            case "init" -> {
                escaped = "html".equals(said.escape);
                here = new HashSet<>(List.of(said.users));
                here.add(user);
                print("* " + said.count + " in " + said.room + ": " + String.join(", ", said.users));
            }
            case "message" -> { if (!said.user.equals(user)) print(said.user + ": " + plain(said.text)); }
        }
        var came = said.type.equals("join") ? new String[] {said.user} : said.joined;
        var gone = said.type.equals("leave") ? new String[] {said.user} : said.left;
        if (came != null) for (var name : came) if (here.add(name)) print("* " + name + " joined");
        if (gone != null) for (var name : gone) if (here.remove(name)) print("* " + name + " left");
        if (waiting.containsKey(said.id)) waiting.remove(said.id).complete(said);
    }
    private String plain(String text) {
        return text == null ? "(data)" : !escaped ? text : text.replace("&lt;", "<").replace("&gt;", ">")
            .replace("&quot;", "\"").replace("&#39;", "'").replace("&amp;", "&");
    }
    private void print(String words) { out.println(words.replaceAll("\\p{Cc}", " ")); } // It commands no terminal.
    private static Said granted(Said it) { return it.code == null ? it : end("Refused: " + it.message, 1); }
    private static <T> T end(String words, int code) { System.err.println(words); System.exit(code); return null; }
}
