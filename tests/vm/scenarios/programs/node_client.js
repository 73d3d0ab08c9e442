// Gets files and posts bodies, several at a time, with connections kept and with one for each request.
// argv: base URL, marker, then files. Prints one checksum of all answers a round.
const crypto = require('crypto');
const http = require('http');
const [base, marker, ...files] = process.argv.slice(2);

function ask(agent, method, path, body) {
    return new Promise((resolve, reject) => {
        const request = http.request(base + path, { agent, method, timeout: 60000 }, (response) => {
            const parts = [];
            response.on('data', (part) => parts.push(part));
            response.on('end', () => resolve(Buffer.concat(parts)));
            response.on('error', reject);
        });
        request.on('error', reject);
        request.end(body);
    });
}

async function round(name, agent) {
    const asked = files.map((file) => ask(agent, 'GET', file));
    const bodies = [1, 1000, 16384, 100000].map((size) => Buffer.alloc(size, `${size} ${marker}\n`));
    const echoed = bodies.map((body) => ask(agent, 'POST', '/echo', body));
    const answers = await Promise.all([...asked, ...echoed]);
    bodies.forEach((body, i) => {
        if (!body.equals(answers[files.length + i])) throw new Error(`another answer to ${body.length} bytes`);
    });
    const sum = crypto.createHash('sha256');
    answers.forEach((answer) => sum.update(answer));
    console.log(`node ${name}: ${answers.length} answers, ${sum.digest('hex')}`);
}

(async () => {
    const kept = new http.Agent({ keepAlive: true, maxSockets: 3 });
    await round('kept', kept);
    await round('kept again', kept);
    await round('one each', new http.Agent({ keepAlive: false, maxSockets: 4 }));
    kept.destroy();
})().catch((error) => { console.error(error); process.exit(1); });
