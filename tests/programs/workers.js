// Workers that compute and count in shared memory, beside the thread pool, timers and a server that this program itself asks.
const { Worker, isMainThread, parentPort, workerData } = require("worker_threads");
const crypto = require("crypto");
const fs = require("fs");
const net = require("net");
const zlib = require("zlib");
const { promisify } = require("util");

const WORKERS = 3;
const ROUNDS = 60;

function work({ number, shared }) {
  const count = new Int32Array(shared);
  const seen = new Map();
  let state = number + 1;
  for (let i = 0; i < 700000; i++) {
    state = (Math.imul(state, 1103515245) + 12345) >>> 0;
    seen.set(state % 3001, { i, text: `${state}` });
    Atomics.add(count, 0, 1);
  }
  let length = 0;
  for (const { text } of seen.values()) length += text.length;
  parentPort.postMessage([number, state, seen.size, length]);
}

function ask(path, question) {
  return new Promise((resolve, reject) => {
    const client = net.connect(path, () => client.end(question));
    const parts = [];
    client.on("data", (part) => parts.push(part));
    client.on("end", () => resolve(Buffer.concat(parts).toString()));
    client.on("error", reject);
  });
}

async function main() {
  const shared = new SharedArrayBuffer(4);
  const workers = [...Array(WORKERS).keys()].map(
    (number) =>
      new Promise((resolve, reject) => {
        const worker = new Worker(__filename, { workerData: { number, shared } });
        worker.on("message", resolve);
        worker.on("error", reject);
      }),
  );
  let ticks = 0;
  const timer = setInterval(() => ticks++, 3);
  const server = net.createServer({ allowHalfOpen: true }, (socket) => {
    socket.on("data", (question) => socket.write(crypto.createHash("sha256").update(question).digest("hex")));
    socket.on("end", () => socket.end());
  });
  await new Promise((resolve) => server.listen("sock", resolve));
  let answer = "begin";
  for (let round = 0; round < ROUNDS; round++) {
    answer = await ask("sock", answer);
    const key = await promisify(crypto.pbkdf2)(answer, "salt", 3000, 32, "sha256");
    const packed = await promisify(zlib.deflate)(Buffer.alloc(50000, key));
    await promisify(fs.writeFile)("file", packed);
    const read = await promisify(fs.readFile)("file");
    const whole = await promisify(zlib.inflate)(read);
    await new Promise((resolve) => setTimeout(resolve, 5));
    if (round % 10 === 0) console.log(round, answer, key.toString("hex"), whole.length);
  }
  for (const result of await Promise.all(workers)) console.log(result);
  console.log(new Int32Array(shared)[0], answer, ticks > 20);
  clearInterval(timer);
  server.close();
}

if (isMainThread) {
  main();
} else {
  work(workerData);
}
