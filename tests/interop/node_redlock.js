// The lock of node-redlock, over ioredis, driven like ours.cpp.
const fs = require("fs");
const { setTimeout: sleep } = require("timers/promises");
const Redis = require("ioredis");
const { default: Redlock, ExecutionError, ResourceLockedError } = require("redlock");

const [key, log] = process.argv.slice(2);
const client = new Redis(process.env.REDIS_URL.replace("unix://", ""), { retryStrategy: null });
const redlock = new Redlock([client], { retryCount: 0, retryDelay: 5, retryJitter: 3 });
// What it says of a server in trouble is what it says of a lock that is taken; here there is to be no trouble.
redlock.on("error", (error) => {
    if (!(error instanceof ResourceLockedError)) throw error;
});
let lock;

async function done(change, yes, no) {
    try {
        lock = (await change()) ?? lock;
        return yes;
    } catch (error) {
        if (error instanceof ExecutionError) return no;
        throw error;
    }
}

async function acquired(ttl, span) {
    const end = Date.now() + span;
    for (;;) {
        const answer = await done(() => redlock.acquire([key], ttl), "held", "busy");
        if (answer === "held" || Date.now() >= end) return answer;
        await sleep(5);
    }
}

async function work(span) {
    let sections = 0;
    for (const end = Date.now() + span; Date.now() < end; ++sections) {
        const section = await redlock.acquire([key], 60000, { retryCount: -1 });
        const before = fs.readFileSync(log, "utf8");
        await sleep(1);
        fs.writeFileSync(log, before + "n");
        await section.release();
        await sleep(Math.random() * 40);
    }
    return sections;
}

const verbs = {
    lock: (ttl) => acquired(ttl, 0),
    wait: acquired,
    extend: (ttl) => done(() => lock.extend(ttl), "confirmed", "refused"),
    unlock: () => done(async () => void (await lock.release()), "confirmed", "refused"),
    token: () => lock.value,
    look: async () => {
        const value = await client.get(key);
        return value === null ? "free" : `${value} ${await client.pttl(key)}`;
    },
    work,
};

async function main() {
    for await (const line of require("readline").createInterface({ input: process.stdin })) {
        const [verb, ...numbers] = line.split(" ");
        console.log(await verbs[verb](...numbers.map(Number)));
    }
    client.disconnect();
}
main();
