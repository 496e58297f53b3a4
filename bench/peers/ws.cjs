// The package `ws` as a chat server: a text goes to everybody who came by the same path, its sender too.
"use strict";
const { WebSocketServer } = require("ws");

const rooms = new Map();
const server = new WebSocketServer({ host: "127.0.0.1", port: 0, clientTracking: false });
server.on("listening", () => console.log(`listening 127.0.0.1:${server.address().port}`));
server.on("connection", (socket, request) => {
  let room = rooms.get(request.url);
  if (!room) rooms.set(request.url, (room = new Set()));
  room.add(socket);
  socket.on("message", (text, binary) => {
    for (const member of room) member.send(text, { binary });
  });
  socket.on("close", () => room.delete(socket));
  socket.on("error", () => room.delete(socket));
});
