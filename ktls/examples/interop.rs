//! One end of a connection that is sealed by the kernel, for proving that any TLS 1.3 peer
//! understands it. It needs a kernel with TLS.
//!
//! ```text
//! interop identities DIR          make DIR/client and DIR/server, each with tls.crt, tls.key, ca.crt
//! interop bytes client|server N   print the N bytes that this role sends
//! interop client|server ADDR --cert DIR --expect SPIFFE_ID --cipher NAME --bytes N
//! ```
//!
//! The last form connects or accepts once and shakes hands. It then sends N bytes and at the same
//! time receives the N bytes of the other role, compares each, and closes first. Against OpenSSL
//! (the `sleep` keeps the standard input of openssl open until our end closes):
//!
//! ```text
//! interop identities id && interop bytes client $N >sent && interop bytes server $N >reply
//! { cat reply; sleep 600; } | openssl s_server -accept 4433 -naccept 1 -quiet -tls1_3 \
//!   -cert id/server/tls.crt -key id/server/tls.key -CAfile id/server/ca.crt \
//!   -Verify 1 -verify_return_error >got &
//! interop client 127.0.0.1:4433 --cert id/client --expect spiffe://interop.test/server \
//!   --cipher aes-128-gcm --bytes $N && cmp sent got
//! ```
//!
//! and the other way round, with `interop server` and `openssl s_client -quiet -connect`.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command-line tool"
)]

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, SanType,
};
use std::{
    env,
    error::Error,
    fs,
    io::{self, Read},
    net::{Shutdown, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::ExitCode,
    thread,
};
use underseal_ktls::{
    Cipher, Identity, Party, Role, SpiffeId,
    record::{RecordReader, close_notify},
    stream::{seal_client, seal_server},
};

fn main() -> ExitCode {
    match run(env::args().skip(1)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(mut args: impl Iterator<Item = String>) -> Result<(), Box<dyn Error>> {
    let mut next = |what: &str| args.next().ok_or(format!("{what} is missing"));
    match next("the command")?.as_str() {
        "identities" => identities(Path::new(&next("the directory")?)),
        "bytes" => {
            let mut bytes = Bytes::of(role(&next("the role")?)?).take(next("N")?.parse()?);
            io::copy(&mut bytes, &mut io::stdout())?;
            Ok(())
        }
        word => exchange(role(word)?, &next("the address")?, &Options::parse(args)?),
    }
}

fn role(word: &str) -> Result<Role, String> {
    match word {
        "client" => Ok(Role::Client),
        "server" => Ok(Role::Server),
        other => Err(format!("`{other}` is neither `client` nor `server`")),
    }
}

struct Options {
    cert: PathBuf,
    expect: SpiffeId,
    cipher: Cipher,
    bytes: u64,
}

impl Options {
    fn parse(mut args: impl Iterator<Item = String>) -> Result<Self, Box<dyn Error>> {
        let (mut cert, mut expect, mut cipher, mut bytes) = (None, None, None, None);
        while let Some(option) = args.next() {
            let value = args.next().ok_or(format!("{option} wants a value"))?;
            match option.as_str() {
                "--cert" => cert = Some(value.into()),
                "--expect" => expect = Some(value.parse()?),
                "--cipher" => cipher = Some(value.parse()?),
                "--bytes" => bytes = Some(value.parse()?),
                other => return Err(format!("unknown option {other}").into()),
            }
        }
        Ok(Self {
            cert: cert.ok_or("--cert is missing")?,
            expect: expect.ok_or("--expect is missing")?,
            cipher: cipher.ok_or("--cipher is missing")?,
            bytes: bytes.ok_or("--bytes is missing")?,
        })
    }
}

fn exchange(role: Role, address: &str, options: &Options) -> Result<(), Box<dyn Error>> {
    let identity = Identity::load(&options.cert)?;
    let party = Party {
        identity: &identity,
        expects: (&options.expect).into(),
    };
    let stream = match role {
        Role::Client => {
            let stream = TcpStream::connect(address)?;
            seal_client(&stream, party, options.cipher)?;
            stream
        }
        Role::Server => {
            let listener = TcpListener::bind(address)?;
            println!("LISTENING {}", listener.local_addr()?);
            let (stream, _) = listener.accept()?;
            seal_server(&stream, party, options.cipher)?;
            stream
        }
    };
    let mut reader = RecordReader::new(&stream);
    let (sent, received) = thread::scope(|scope| {
        let sending = scope.spawn(|| {
            let mut bytes = Bytes::of(role).take(options.bytes);
            io::copy(&mut bytes, &mut &stream)
        });
        let received = compare(&mut reader, Bytes::of(other(role)), options.bytes);
        (sending.join().expect("the sender does not panic"), received)
    });
    let (received, sent) = (received?, sent?);
    close_notify(&stream)?;
    stream.shutdown(Shutdown::Write)?;
    if reader.read(&mut [0; 1])? != 0 {
        return Err(format!("more than {received} bytes came").into());
    }
    println!("INTEROP-OK sent={sent} received={received}");
    Ok(())
}

/// Reads `len` bytes and compares each with the one that `expected` yields.
fn compare(reader: &mut impl Read, mut expected: Bytes, len: u64) -> Result<u64, String> {
    let mut reader = reader.take(len);
    let (mut got, mut want) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    let mut received = 0;
    loop {
        let n = reader
            .read(&mut got)
            .map_err(|error| format!("after {received} bytes received: {error}"))?;
        if n == 0 && received < len {
            return Err(format!("the peer closed after {received} of {len} bytes"));
        }
        if n == 0 {
            return Ok(received);
        }
        expected.fill(&mut want[..n]);
        if let Some(at) = got[..n].iter().zip(&want).position(|(a, b)| a != b) {
            return Err(format!("byte {} is wrong", received + at as u64));
        }
        received += n as u64;
    }
}

const fn other(role: Role) -> Role {
    match role {
        Role::Client => Role::Server,
        Role::Server => Role::Client,
    }
}

/// The endless bytes that a role sends: Marsaglia's xorshift64, each word's lowest byte first.
struct Bytes {
    state: u64,
    left: u32,
}

impl Bytes {
    const fn of(role: Role) -> Self {
        let state = match role {
            Role::Client => 0x9e37_79b9_7f4a_7c15,
            Role::Server => 0xd1b5_4a32_d192_ed03,
        };
        Self { state, left: 0 }
    }

    fn fill(&mut self, buffer: &mut [u8]) {
        for byte in buffer {
            if self.left == 0 {
                self.state ^= self.state << 13;
                self.state ^= self.state >> 7;
                self.state ^= self.state << 17;
                self.left = 8;
            }
            *byte = self.state.to_le_bytes()[8 - self.left as usize];
            self.left -= 1;
        }
    }
}

impl Read for Bytes {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.fill(buffer);
        Ok(buffer.len())
    }
}

/// Makes the identities `spiffe://interop.test/client` and `/server`, issued by one CA.
fn identities(directory: &Path) -> Result<(), Box<dyn Error>> {
    let mut params = named("interop CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
    for name in ["client", "server"] {
        let mut params = named(name);
        let id = format!("spiffe://interop.test/{name}");
        params.subject_alt_names = vec![SanType::URI(id.try_into()?)];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ClientAuth,
            ExtendedKeyUsagePurpose::ServerAuth,
        ];
        let key = KeyPair::generate()?;
        let leaf = params.signed_by(&key, &ca)?;
        let directory = directory.join(name);
        fs::create_dir_all(&directory)?;
        fs::write(directory.join("tls.crt"), leaf.pem())?;
        fs::write(directory.join("tls.key"), key.serialize_pem())?;
        fs::write(directory.join("ca.crt"), ca.pem())?;
    }
    Ok(())
}

/// OpenSSL takes a certificate whose issuer has the same name for a self-signed one.
fn named(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params
}
