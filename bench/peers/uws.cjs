// uWebSockets as a chat server: a text goes to everybody who came by the same path, its sender too.
"use strict";
const uws = require("@trufflesuite/uws-js-unofficial");

const app = uws.App();
app.ws("/*", {
  idleTimeout: 0,
  maxBackpressure: 64 * 1024 * 1024,
  upgrade(response, request, context) {
    response.upgrade(
      { room: request.getUrl() },
      request.getHeader("sec-websocket-key"),
      request.getHeader("sec-websocket-protocol"),
      request.getHeader("sec-websocket-extensions"),
      context,
    );
  },
  open(socket) {
    socket.subscribe(socket.room ?? socket.getUserData().room);
  },
  message(socket, text, binary) {
    app.publish(socket.room ?? socket.getUserData().room, text, binary);
  },
});
app.listen("127.0.0.1", 0, (token) => {
  if (!token) process.exit(1);
  console.log(`listening 127.0.0.1:${uws.us_socket_local_port(token)}`);
});
