// Blocking sockets and NIO, both ends of each. A client sends a length and so many bytes, and gets both back; length
// -1 asks for a file. When the client ends its direction the server says how many bytes it has read, and closes.
//
//   java Talk serve FILE PORT         blocking sockets on PORT, NIO on PORT + 1
//   java Talk ask HOST PORT MARKER    both clients, each to both servers
//
// A client checks every answer and prints one line: exchanges, bytes, and checksums of all that it has received.

import java.io.BufferedOutputStream;
import java.io.DataInputStream;
import java.io.DataOutputStream;
import java.io.EOFException;
import java.io.IOException;
import java.net.InetSocketAddress;
import java.net.ServerSocket;
import java.net.Socket;
import java.net.StandardSocketOptions;
import java.nio.ByteBuffer;
import java.nio.channels.FileChannel;
import java.nio.channels.SelectionKey;
import java.nio.channels.Selector;
import java.nio.channels.ServerSocketChannel;
import java.nio.channels.SocketChannel;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayDeque;
import java.util.Arrays;
import java.util.zip.CRC32;

public final class Talk {
    static final int[] SIZES = {1, 0, 100, 16383, 16384, 16385, 100000};
    static final int FILE = -1;
    static final int CONNECTIONS = 3;
    static final int TIMEOUT_MS = 60000;

    public static void main(String[] words) throws Exception {
        switch (words[0]) {
            case "serve" -> {
                Path file = Path.of(words[1]);
                int port = Integer.parseInt(words[2]);
                new Thread(() -> serveBlocking(file, port)).start();
                new NioServer(file, port + 1).serve();
            }
            case "ask" -> {
                int port = Integer.parseInt(words[2]);
                for (int server : new int[] {port, port + 1}) {
                    blocking(words[1], server, words[3]);
                    new NioClient(words[1], server, words[3]).talk();
                }
            }
            default -> throw new IllegalArgumentException(words[0]);
        }
    }

    // So many bytes in which no two places look alike.
    static byte[] payload(int size, String marker) {
        StringBuilder text = new StringBuilder();
        for (int line = 0; text.length() < size; line++) {
            text.append(line).append(' ').append(marker).append('\n');
        }
        return Arrays.copyOf(text.toString().getBytes(), size);
    }

    static void serveBlocking(Path file, int port) {
        try (ServerSocket listener = new ServerSocket()) {
            listener.bind(new InetSocketAddress("::", port));
            while (true) {
                Socket socket = listener.accept();
                new Thread(() -> answer(socket, file)).start();
            }
        } catch (IOException error) {
            fail(error);
        }
    }

    static void answer(Socket socket, Path file) {
        try (socket) {
            DataInputStream in = new DataInputStream(socket.getInputStream());
            DataOutputStream out = new DataOutputStream(new BufferedOutputStream(socket.getOutputStream()));
            long read = 0;
            while (true) {
                int size;
                try {
                    size = in.readInt();
                } catch (EOFException end) {
                    out.writeLong(read);
                    out.flush();
                    return;
                }
                byte[] data = size == FILE ? Files.readAllBytes(file) : in.readNBytes(size);
                read += 4 + Math.max(size, 0);
                out.writeInt(data.length);
                out.write(data);
                out.flush();
            }
        } catch (IOException error) {
            fail(error);
        }
    }

    static void blocking(String host, int port, String marker) throws Exception {
        long[] bytes = {0};
        long[] sums = new long[CONNECTIONS];
        Thread[] threads = new Thread[CONNECTIONS];
        for (int i = 0; i < CONNECTIONS; i++) {
            int number = i;
            threads[i] = new Thread(() -> sums[number] = exchange(host, port, marker, number, bytes));
            threads[i].start();
        }
        for (Thread thread : threads) {
            thread.join();
        }
        report("blocking", bytes[0], sums);
    }

    static long exchange(String host, int port, String marker, int number, long[] bytes) {
        CRC32 sum = new CRC32();
        try (Socket socket = new Socket()) {
            socket.connect(new InetSocketAddress(host, port), TIMEOUT_MS);
            // Every other connection is read with a timeout: the runtime then polls before it reads.
            socket.setSoTimeout(number % 2 == 0 ? TIMEOUT_MS : 0);
            DataInputStream in = new DataInputStream(socket.getInputStream());
            DataOutputStream out = new DataOutputStream(socket.getOutputStream());
            long sent = 0;
            for (int size : SIZES) {
                byte[] data = payload(size, marker);
                out.writeInt(size);
                out.write(data);
                sent += 4 + size;
                byte[] back = in.readNBytes(in.readInt());
                check(Arrays.equals(data, back), "another answer to " + size + " bytes");
                sum.update(back);
            }
            out.writeInt(FILE);
            sum.update(in.readNBytes(in.readInt()));
            socket.shutdownOutput();
            check(in.readLong() == sent + 4, "the server has read another number of bytes");
            check(in.read() == -1, "no end after the end");
            synchronized (bytes) {
                bytes[0] += sent;
            }
        } catch (IOException error) {
            fail(error);
        }
        return sum.getValue();
    }

    static void report(String what, long bytes, long[] sums) {
        System.out.printf("java %s: %d exchanges, %d bytes sent, checksums %s%n",
                what, (SIZES.length + 1) * CONNECTIONS, bytes, Arrays.toString(sums));
    }

    static void check(boolean holds, String otherwise) throws IOException {
        if (!holds) {
            throw new IOException(otherwise);
        }
    }

    static void fail(Exception error) {
        error.printStackTrace();
        System.exit(1);
    }

    // One thread, one selector, sockets that never block; gathering writes, and transferTo for the file.
    static final class NioServer {
        final Path file;
        final Selector selector = Selector.open();
        final ServerSocketChannel listener = ServerSocketChannel.open();

        NioServer(Path file, int port) throws IOException {
            this.file = file;
            listener.bind(new InetSocketAddress("::", port));
            listener.configureBlocking(false);
            listener.register(selector, SelectionKey.OP_ACCEPT);
        }

        void serve() throws IOException {
            while (true) {
                selector.select();
                for (SelectionKey key : selector.selectedKeys()) {
                    if (key.isAcceptable()) {
                        SocketChannel channel = listener.accept();
                        channel.configureBlocking(false);
                        channel.register(selector, SelectionKey.OP_READ, new Served(channel, file));
                    } else {
                        ((Served) key.attachment()).step(key);
                    }
                }
                selector.selectedKeys().clear();
            }
        }
    }

    static final class Served {
        final SocketChannel channel;
        final Path path;
        final ByteBuffer header = ByteBuffer.allocateDirect(4);
        final ArrayDeque<ByteBuffer> replies = new ArrayDeque<>();
        ByteBuffer body;
        FileChannel file;
        long at;
        long read;
        boolean ended;

        Served(SocketChannel channel, Path path) {
            this.channel = channel;
            this.path = path;
        }

        void step(SelectionKey key) throws IOException {
            if (key.isReadable()) {
                receive();
            }
            if (send()) {
                if (ended) {
                    channel.close();
                    return;
                }
                key.interestOps(SelectionKey.OP_READ);
            } else {
                key.interestOps(SelectionKey.OP_WRITE);
            }
        }

        // One request at a time: the client waits for its answer.
        void receive() throws IOException {
            while (replies.isEmpty() && file == null && !ended) {
                ByteBuffer into = body == null ? header : body;
                int count = into.hasRemaining() ? channel.read(into) : 0;
                if (count < 0) {
                    ended = true;
                    replies.add(ByteBuffer.allocate(8).putLong(read).flip());
                    return;
                }
                read += count;
                if (into.hasRemaining()) {
                    return;
                }
                if (body != null) {
                    replies.add(ByteBuffer.allocateDirect(4).putInt(body.capacity()).flip());
                    replies.add(body.flip());
                    body = null;
                } else {
                    begin(header.flip().getInt());
                    header.clear();
                }
            }
        }

        void begin(int size) throws IOException {
            if (size != FILE) {
                body = ByteBuffer.allocateDirect(size);
                return;
            }
            file = FileChannel.open(path);
            at = 0;
            replies.add(ByteBuffer.allocate(4).putInt((int) file.size()).flip());
        }

        // True if nothing is left to send.
        boolean send() throws IOException {
            if (!replies.isEmpty()) {
                channel.write(replies.toArray(new ByteBuffer[0]));
                while (!replies.isEmpty() && !replies.peek().hasRemaining()) {
                    replies.remove();
                }
            }
            if (!replies.isEmpty()) {
                return false;
            }
            if (file != null) {
                at += file.transferTo(at, file.size() - at, channel);
                if (at < file.size()) {
                    return false;
                }
                file.close();
                file = null;
            }
            return true;
        }
    }

    static final class NioClient {
        final String marker;
        final Selector selector = Selector.open();
        final long[] sums = new long[CONNECTIONS];
        long bytes;
        int open = CONNECTIONS;

        NioClient(String host, int port, String marker) throws IOException {
            this.marker = marker;
            for (int i = 0; i < CONNECTIONS; i++) {
                SocketChannel channel = SocketChannel.open();
                channel.configureBlocking(false);
                channel.setOption(StandardSocketOptions.TCP_NODELAY, i % 2 == 0);
                channel.connect(new InetSocketAddress(host, port));
                channel.register(selector, SelectionKey.OP_CONNECT, new Asked(i));
            }
        }

        void talk() throws IOException {
            while (open > 0) {
                selector.select();
                for (SelectionKey key : selector.selectedKeys()) {
                    step(key, (SocketChannel) key.channel(), (Asked) key.attachment());
                }
                selector.selectedKeys().clear();
            }
            report("nio", bytes, sums);
        }

        void step(SelectionKey key, SocketChannel channel, Asked asked) throws IOException {
            if (key.isConnectable()) {
                channel.finishConnect();
                asked.ask(marker);
                key.interestOps(SelectionKey.OP_WRITE);
            } else if (key.isWritable()) {
                channel.write(asked.request);
                if (!asked.request[1].hasRemaining() && !asked.request[0].hasRemaining()) {
                    key.interestOps(SelectionKey.OP_READ);
                }
            } else {
                read(key, channel, asked);
            }
        }

        void read(SelectionKey key, SocketChannel channel, Asked asked) throws IOException {
            if (asked.next > SIZES.length) {
                goodbye(channel, asked);
            } else if (asked.receive(channel)) {
                asked.compare();
                asked.next++;
                if (asked.next <= SIZES.length) {
                    asked.ask(marker);
                    key.interestOps(SelectionKey.OP_WRITE);
                } else {
                    channel.shutdownOutput();
                    asked.header = ByteBuffer.allocate(9);
                }
            }
        }

        // The last eight bytes, and the end.
        void goodbye(SocketChannel channel, Asked asked) throws IOException {
            if (channel.read(asked.header) >= 0) {
                return;
            }
            check(asked.header.position() == 8, "the server said more or less than goodbye");
            check(asked.header.flip().getLong() == asked.sent, "the server has read another number of bytes");
            bytes += asked.sent - 4;
            sums[asked.number] = asked.sum.getValue();
            channel.close();
            open--;
        }
    }

    static final class Asked {
        final int number;
        final CRC32 sum = new CRC32();
        ByteBuffer[] request;
        ByteBuffer header = ByteBuffer.allocate(4);
        ByteBuffer body;
        int next;
        long sent;

        Asked(int number) {
            this.number = number;
        }

        void ask(String marker) {
            boolean file = next == SIZES.length;
            byte[] data = payload(file ? 0 : SIZES[next], marker);
            request = new ByteBuffer[] {
                ByteBuffer.allocate(4).putInt(file ? FILE : data.length).flip(), ByteBuffer.wrap(data)};
            sent += 4 + data.length;
        }

        // True if the answer is complete.
        boolean receive(SocketChannel channel) throws IOException {
            if (body == null) {
                check(channel.read(header) >= 0, "the server has closed");
                if (header.hasRemaining()) {
                    return false;
                }
                body = ByteBuffer.allocate(header.flip().getInt());
                header.clear();
            }
            check(!body.hasRemaining() || channel.read(body) >= 0, "the server has closed");
            return !body.hasRemaining();
        }

        void compare() throws IOException {
            if (next < SIZES.length) {
                check(body.flip().equals(request[1].flip()), "another answer to " + SIZES[next] + " bytes");
            }
            sum.update(body.array());
            body = null;
        }
    }
}
