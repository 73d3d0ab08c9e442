// Answers GET with a file, through a stream, and POST with what it was sent. argv: folder, port.
const fs = require('fs');
const http = require('http');
const [folder, port] = process.argv.slice(2);
http.createServer((request, response) => {
    if (request.method === 'POST') {
        response.writeHead(200, { 'Content-Type': 'application/octet-stream' });
        request.pipe(response);
    } else {
        fs.createReadStream(folder + request.url).pipe(response);
    }
}).listen(port, '::');
