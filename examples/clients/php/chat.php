<?php
// A chat page that needs no script in the browser: PHP 8 speaks to chinwag by HTTP polling, from the server.
//
//     CHINWAG_URL=http://127.0.0.1:8080 php -S 127.0.0.1:8000 chat.php       then open http://127.0.0.1:8000/
//
// The id of chinwag's session stays in PHP's and never reaches the browser. docs/clients.md explains each step.
session_start(['cookie_httponly' => true, 'cookie_samesite' => 'Strict', 'use_strict_mode' => true,
    'cookie_secure' => isset($_SERVER['HTTPS'])]);
$_SESSION += ['token' => bin2hex(random_bytes(16)), 'id' => null, 'init' => null, 'notice' => '', 'draft' => ''];
header("Content-Security-Policy: default-src 'none'; frame-src 'self'; form-action 'self'; frame-ancestors 'self'");
header('Cache-Control: no-store');

/** One request to chinwag. Gives the object that answers it; throws the words of an error. */
function ask(string $method, string $path, array $body = []): array {
    $header = ['Content-Type: application/json'];
    if ($_SESSION['id']) $header[] = "Authorization: Bearer {$_SESSION['id']}";
    $content = $body ? json_encode($body, JSON_INVALID_UTF8_SUBSTITUTE) : '';
    $http = ['method' => $method, 'header' => $header, 'content' => $content, 'ignore_errors' => true, 'timeout' => 10];
    $url = (getenv('CHINWAG_URL') ?: 'http://127.0.0.1:8080') . $path;
    $answer = json_decode((string) @file_get_contents($url, false, stream_context_create(['http' => $http])), true);
    if (in_array($answer['code'] ?? '', ['logout', 'session_expired', 'not_logged_in'])) $_SESSION['id'] = null;
    if (isset($answer) && ($answer['type'] ?? '') !== 'error') return $answer;
    throw new RuntimeException($answer['message'] ?? 'The chat server does not answer.');
}

function log_in(string $user, string $password, string $room): void {
    if ($_SESSION['id']) ask('DELETE', '/v1/session'); // Left over from a room that could not be joined.
    $_SESSION = ['init' => null, 'lines' => [], 'ack' => 0] + $_SESSION;
    $login = ['user' => $user] + ($password === '' ? [] : ['password' => $password]);
    $_SESSION['id'] = ask('POST', '/v1/session', $login)['session'];
    session_regenerate_id(true);
    $_SESSION['init'] = ask('POST', '/v1/commands', ['type' => 'join', 'room' => $room]);
    $_SESSION['lines'][] = "* {$_SESSION['init']['count']} in $room: " . implode(', ', $_SESSION['init']['users']);
}

/** Fetches what has happened. It is kept before it is acknowledged; what got lost on the way is asked for again. */
function poll(): void {
    $batch = ask('GET', "/v1/events?ack={$_SESSION['ack']}");
    $_SESSION['ack'] = $batch['next'];
    foreach ($batch['events'] as $said) {
        if (($said['seq'] ?? INF) <= $_SESSION['init']['seq']) continue; // The answer to `join` has told it already.
        if ($said['type'] === 'bye') $_SESSION['id'] = null;
        [$user, $text] = [$said['user'] ?? '', $said['text'] ?? '(data)'];
        $text = isset($_SESSION['init']['escape']) ? htmlspecialchars_decode($text, ENT_QUOTES) : $text;
        $_SESSION['lines'][] = match ($said['type']) {
            'message' => "$user: $text",
            'join' => "* $user joined",
            'leave' => "* $user left",
            'presence' => "* {$said['count']} in the room",
            'bye' => "* {$said['message']}",
            default => null, // Later servers say more.
        };
    }
    $_SESSION['lines'] = array_slice(array_filter($_SESSION['lines']), -200);
}

$field = fn (string $name): string => is_string($_POST[$name] ?? null) ? $_POST[$name] : '';
$html = fn (string $text): string => htmlspecialchars($text, ENT_QUOTES | ENT_SUBSTITUTE);
try {
    if (isset($_GET['lines']) && $_SESSION['id']) poll();
    if ($_SERVER['REQUEST_METHOD'] === 'POST') {
        if (!hash_equals($_SESSION['token'], $field('token'))) exit(http_response_code(403)); // Another site's form.
        header('Location: ' . strtok($_SERVER['REQUEST_URI'], '?'), true, 303);
        $_SESSION = ['notice' => '', 'draft' => $field('text')] + $_SESSION;
        if ($field('do') === 'Log in') log_in($field('user'), $field('password'), $field('room'));
        $send = ['type' => 'send', 'room' => $_SESSION['init']['room'] ?? '', 'text' => $field('text')];
        if ($field('do') === 'Send') ask('POST', '/v1/commands', $send);
        if ($field('do') === 'Log out') ask('DELETE', '/v1/session');
        $_SESSION['draft'] = '';
        exit;
    }
} catch (RuntimeException $error) {
    $_SESSION['notice'] = $error->getMessage();
    if ($_SERVER['REQUEST_METHOD'] === 'POST') exit;
}
$in = $_SESSION['id'] && $_SESSION['init'];
if ($in && isset($_GET['lines'])) header('Refresh: 2');
?>
<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>Chat</title>
<?php if (isset($_GET['lines'])): foreach (array_reverse($_SESSION['lines'] ?? []) as $line): ?>
<p><?= $html($line) ?></p>
<?php endforeach; if (!$in): ?><p><a href="?" target="_top">Log in again</a></p><?php endif; else: ?>
<p role="status"><?= $html($_SESSION['notice']) ?></p>
<form method="post"><input type="hidden" name="token" value="<?= $_SESSION['token'] ?>">
<?php if ($in): ?>
<iframe src="?lines" title="Messages, the newest first" width="100%" height="300"></iframe>
<label>Message <input name="text" value="<?= $html($_SESSION['draft']) ?>" autofocus></label>
<button name="do" value="Send">Send</button> <button name="do" value="Log out">Log out</button>
<?php else: ?>
<label>Name <input name="user" required></label> <label>Room <input name="room" value="lobby" required></label>
<label>Password, if you have one <input type="password" name="password"></label>
<button name="do" value="Log in">Log in</button>
<?php endif ?></form><?php endif ?>
