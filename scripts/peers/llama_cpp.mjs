// llama.cpp, as the prebuilt library inside the npm package node-llama-cpp, on a GGUF file: prefill of a prompt, and decoding of one sequence.
//
//   node llama_cpp.mjs --npm DIR --model FILE --format NAME --threads N [--rounds N] [--prompt 512] [--decode 32] [--flash auto|on|off] [--ask]
//   node llama_cpp.mjs --npm DIR --model FILE --threads N --logits 16      the logits after that many tokens, one line of JSON
//
// One line of JSON per round.  With --ask a round starts when a line comes in on stdin, so that rounds of several programs can take turns.
// Loading and one unmeasured round of warming up are not counted.  What is timed is llama_decode() alone, as llama.cpp's own benchmark does:
// the low-level calls of the package are used, no sampling, a prompt in one batch, decoding from an empty context, the head for one row.
import fs from "node:fs";
import path from "node:path";
import readline from "node:readline";
import {pathToFileURL} from "node:url";
import {parseArgs} from "node:util";

const {values: arg} = parseArgs({options: {
    npm: {type: "string"}, model: {type: "string"}, format: {type: "string"}, threads: {type: "string"},
    rounds: {type: "string", default: "1"}, prompt: {type: "string", default: "512"}, decode: {type: "string", default: "32"},
    flash: {type: "string", default: "auto"}, ask: {type: "boolean", default: false}, logits: {type: "string"}
}});
const threads = Number(arg.threads), promptTokens = Number(arg.prompt), decodeTokens = Number(arg.decode);
const flash = {auto: "auto", on: true, off: false}[arg.flash];

// The same made-up tokens for every program that is measured
const token = (i, vocabulary) => 259 + (i * 7919 + 13) % (vocabulary - 259);

// The variant of the library that was loaded for this processor
function backend() {
    const maps = fs.readFileSync("/proc/self/maps", "utf8");
    return [...new Set([...maps.matchAll(/libggml-cpu-?([a-z0-9]*)\.so/g)].map((m) => m[1] || "plain"))].join("+") || "built in";
}

// Says so on stderr if that is not a variant made for processors like this one
function checkBackend(name) {
    if (process.arch !== "x64") return;
    const has = new Set((/^flags\s*:(.*)$/m.exec(fs.readFileSync("/proc/cpuinfo", "utf8")) ?? ["", ""])[1].split(" "));
    const good = has.has("avx512bw") && has.has("avx512vl")
        ? ["skylakex", "cannonlake", "cascadelake", "icelake", "cooperlake", "zen4", "sapphirerapids"]
        : has.has("avx2") && has.has("fma") ? ["haswell", "alderlake"] : [name];
    if (!good.includes(name)) console.error(`bench_peers: llama.cpp took its kernels for ${name}; this processor deserves ${good.join(" or ")}`);
}

async function open() {
    const home = path.join(arg.npm, "node_modules", "node-llama-cpp");
    const {getLlama} = await import(pathToFileURL(path.join(home, "dist", "index.js")));
    const llama = await getLlama({gpu: false, build: "never", skipDownload: true, progressLogs: false, logLevel: "error", maxThreads: threads});
    const model = await llama.loadModel({modelPath: arg.model, gpuLayers: 0, defaultContextFlashAttention: flash});
    const size = {contextSize: promptTokens + decodeTokens + 1, batchSize: promptTokens, sequences: 1};
    const context = await model.createContext({...size, threads, flashAttention: flash});
    const release = JSON.parse(fs.readFileSync(path.join(home, "llama", "llama.cpp.info.json"))).tag;
    if (context._ctx.getThreads() !== threads) throw new Error(`asked for ${threads} threads, the context has ${context._ctx.getThreads()}`);
    return {llama, model, low: context._ctx, vocabulary: model.fileInfo.metadata.llama.vocab_size, release};
}

// Runs `count` tokens as one batch from position `at` on; returns the index of the last one's logits.
async function run(p, at, count) {
    const tokens = Uint32Array.from({length: count}, (_, i) => token(at + i, p.vocabulary));
    p.low.initBatch(count);
    const [index] = p.low.addToBatch(0, at, tokens, Uint32Array.of(count - 1));
    await p.low.decodeBatch();
    return index;
}

async function round(p) {
    const now = () => Number(process.hrtime.bigint()) / 1e9;
    // [tokens per second, share of the threads' time that they were on a processor]
    const time = async (tokens, work) => {
        p.low.disposeSequence(0);
        const cpu = process.cpuUsage(), start = now();
        await work();
        const wall = now() - start, used = process.cpuUsage(cpu);
        return [+(tokens / wall).toFixed(3), +((used.user + used.system) / 1e6 / wall / threads).toFixed(3)];
    };
    const [prefill, prefillShare] = await time(promptTokens, () => run(p, 0, promptTokens));
    const [decode, decodeShare] = await time(decodeTokens, async () => {
        for (let i = 0; i < decodeTokens; i++) await run(p, i, 1);
    });
    return {prefill_tps: prefill, decode_tps: decode, prefill_cpu: prefillShare, decode_cpu: decodeShare};
}

async function logits(p, count) {
    const index = await run(p, 0, count);
    const sampler = new p.llama._bindings.AddonSampler(p.model._model);
    sampler.applyConfig({temperature: 0});
    const [, , , pairs] = await p.low.sampleToken(index, sampler, false, false, true);
    const out = new Array(p.vocabulary);
    for (let i = 0; i < pairs.length; i += 2) out[pairs[i]] = pairs[i + 1];
    return out;
}

const p = await open();
checkBackend(backend());
if (arg.logits) {
    console.log(JSON.stringify(await logits(p, Number(arg.logits))));
} else {
    const about = {peer: "llama.cpp", format: arg.format, threads};
    const tail = {prompt: promptTokens, decode: decodeTokens, flash: arg.flash, version: p.release, kernels: backend()};
    await round(p);
    if (arg.ask) {
        console.log(JSON.stringify({ready: true, ...about, ...tail}));
        for await (const _ of readline.createInterface({input: process.stdin}))
            console.log(JSON.stringify({...about, ...(await round(p)), ...tail}));
    } else {
        for (let left = Number(arg.rounds); left > 0; left--) console.log(JSON.stringify({...about, ...(await round(p)), ...tail}));
    }
}
process.exit(0); // without waiting for the package's clean-up
