//! Where the running kernel keeps the struct members that the programs read, from its BTF
//! (<https://docs.kernel.org/bpf/btf.html>).
//!
//! Rust objects carry no CO-RE relocations, so these numbers replace them. The walk is pure and
//! checks every bound: the input is the kernel's, but a wrong offset would be silent.

use thiserror::Error;

/// Name of the global that takes an offset, with the struct and the member it is the offset of.
/// The globals are declared in bpf/src/offsets.rs.
pub const MEMBERS: [(&str, &str, &str); 24] = [
    ("OFF_SOCKET_SK", "socket", "sk"),
    ("OFF_FILE_PRIVATE", "file", "private_data"),
    ("OFF_SKC_COOKIE", "sock_common", "skc_cookie"),
    ("OFF_SKC_FAMILY", "sock_common", "skc_family"),
    ("OFF_SKC_STATE", "sock_common", "skc_state"),
    ("OFF_SKC_NUM", "sock_common", "skc_num"),
    ("OFF_SKC_DPORT", "sock_common", "skc_dport"),
    ("OFF_SKC_DADDR", "sock_common", "skc_daddr"),
    ("OFF_SKC_RCV_SADDR", "sock_common", "skc_rcv_saddr"),
    ("OFF_SKC_V6_DADDR", "sock_common", "skc_v6_daddr"),
    ("OFF_SKC_V6_RCV_SADDR", "sock_common", "skc_v6_rcv_saddr"),
    ("OFF_SK_SHUTDOWN", "sock", "sk_shutdown"),
    ("OFF_MSG_FLAGS", "msghdr", "msg_flags"),
    ("OFF_ICSK_ULP_OPS", "inet_connection_sock", "icsk_ulp_ops"),
    ("OFF_ICSK_ULP_DATA", "inet_connection_sock", "icsk_ulp_data"),
    ("OFF_ULP_NAME", "tcp_ulp_ops", "name"),
    ("OFF_SK_MSG_SG", "sk_msg", "sg"),
    ("OFF_SK_MSG_SG_SIZE", "sk_msg_sg", "size"),
    ("OFF_TLS_PRIV_TX", "tls_context", "priv_ctx_tx"),
    ("OFF_TLS_PARTIAL", "tls_context", "partially_sent_record"),
    ("OFF_TLS_OPEN_REC", "tls_sw_context_tx", "open_rec"),
    ("OFF_TLS_REC_PLAIN", "tls_rec", "msg_plaintext"),
    ("OFF_SKC_NET", "sock_common", "skc_net"),
    ("OFF_NET_COOKIE", "net", "net_cookie"),
];

/// Why an offset cannot be told.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Error {
    /// The bytes are no BTF that this version understands.
    #[error("the kernel's BTF cannot be read: {0}")]
    Malformed(&'static str),
    /// The kernel has no such struct, or no such member in it.
    #[error("the kernel's `struct {name}` has no member `{member}`")]
    NoMember {
        /// The struct.
        name: &'static str,
        /// The member.
        member: &'static str,
    },
}

/// The offsets of [`MEMBERS`], in bytes, in the same order.
///
/// `vmlinux` is the kernel's BTF, `module` that of its module tls, if it is one: what is special to
/// TLS is there.
///
/// # Errors
/// Either is malformed, or a member does not exist.
pub fn find(vmlinux: &[u8], module: Option<&[u8]>) -> Result<[u32; MEMBERS.len()], Error> {
    let kernel = Btf::parse(vmlinux, &[])?;
    let module = module
        .map(|bytes| Btf::parse(bytes, kernel.strings))
        .transpose()?;
    let all: Vec<&Btf<'_>> = [Some(&kernel), module.as_ref()]
        .into_iter()
        .flatten()
        .collect();
    let mut offsets = [0; MEMBERS.len()];
    for (offset, (_, name, member)) in offsets.iter_mut().zip(MEMBERS) {
        let in_one = |btf: &&Btf<'_>| btf.structs(name).find_map(|s| btf.bits(s, member, DEEPEST));
        let bits = all.iter().find_map(in_one);
        let bits = bits
            .filter(|bits| bits % 8 == 0)
            .ok_or(Error::NoMember { name, member })?;
        *offset = bits / 8;
    }
    Ok(offsets)
}

/// How deep anonymous structs and unions may be nested in one another.
const DEEPEST: u32 = 8;

const STRUCT: u32 = 4;
const UNION: u32 = 5;

/// The type section with the place of each type, and the names.
struct Btf<'a> {
    types: Vec<Type<'a>>,
    /// Names of the kernel, which a module's continue; empty for the kernel itself.
    base: &'a [u8],
    strings: &'a [u8],
}

#[derive(Clone, Copy)]
struct Type<'a> {
    name: u32,
    kind: u32,
    /// Whether the offsets of members are 24 bits, with the size of a bit field above.
    bit_fields: bool,
    /// The type that a modifier or typedef stands for.
    target: u32,
    /// What follows the common header.
    body: &'a [u8],
}

impl<'a> Btf<'a> {
    fn parse(bytes: &'a [u8], base: &'a [u8]) -> Result<Self, Error> {
        const MAGIC: u32 = 0xeb9f;
        let malformed = Error::Malformed;
        let field = |at: usize| word(bytes, at).ok_or(malformed("its header is cut off"));
        // The first word holds magic (16 bits), version and flags; the machine's byte order is ours.
        let first = field(0)?.to_ne_bytes();
        if u32::from(u16::from_ne_bytes([first[0], first[1]])) != MAGIC || first[2] != 1 {
            return Err(malformed(
                "it is not version 1 in this machine's byte order",
            ));
        }
        let start = field(4)?;
        let section = |offset: u32, length: u32| {
            let from = usize::try_from(start.checked_add(offset)?).ok()?;
            bytes.get(from..)?.get(..usize::try_from(length).ok()?)
        };
        let types = section(field(8)?, field(12)?).ok_or(malformed("its types are cut off"))?;
        let strings = section(field(16)?, field(20)?).ok_or(malformed("its names are cut off"))?;
        Ok(Self {
            types: Self::types(types)?,
            base,
            strings,
        })
    }

    fn types(mut rest: &'a [u8]) -> Result<Vec<Type<'a>>, Error> {
        let mut types = Vec::new();
        while !rest.is_empty() {
            let cut = Error::Malformed("a type is cut off");
            let (Some(name), Some(info), Some(target)) =
                (word(rest, 0), word(rest, 4), word(rest, 8))
            else {
                return Err(cut);
            };
            // Bits that older kernels leave at zero are counted in: 24 of the length, 7 of the kind.
            let (count, kind) = ((info & 0x00ff_ffff) as usize, info >> 24 & 0x7f);
            let length = match kind {
                2 | 7..=12 | 16 | 18 => 0, // pointers, modifiers, typedef, forward, function, float
                1 | 14 | 17 => 4,          // integer, variable, declaration tag
                3 => 12,                   // array
                STRUCT | UNION | 15 | 19 => count * 12, // and data section, 64-bit enum
                6 | 13 => count * 8,       // enum, prototype
                _ => {
                    return Err(Error::Malformed(
                        "it has a kind of type that this version does not know",
                    ));
                }
            };
            let body = rest.get(12..12 + length).ok_or(cut)?;
            types.push(Type {
                name,
                kind,
                bit_fields: info >> 31 == 1,
                target,
                body,
            });
            rest = &rest[12 + length..];
        }
        Ok(types)
    }

    fn structs(&self, name: &str) -> impl Iterator<Item = Type<'a>> {
        self.types
            .iter()
            .copied()
            .filter(move |t| t.kind == STRUCT && self.name(t.name) == Some(name.as_bytes()))
    }

    /// Offset of a member in bits. Looks into anonymous members too.
    fn bits(&self, of: Type<'a>, member: &str, depth: u32) -> Option<u32> {
        of.body.chunks_exact(12).find_map(|entry| {
            let (name, target, offset) = (word(entry, 0)?, word(entry, 4)?, word(entry, 8)?);
            let offset = if of.bit_fields {
                offset & 0x00ff_ffff
            } else {
                offset
            };
            match self.name(name)? {
                [] if depth > 0 => {
                    offset.checked_add(self.bits(self.composite(target)?, member, depth - 1)?)
                }
                name => (name == member.as_bytes()).then_some(offset),
            }
        })
    }

    /// The struct or union that a type id stands for, through modifiers and typedefs.
    fn composite(&self, mut id: u32) -> Option<Type<'a>> {
        if !self.base.is_empty() {
            // A module's ids continue the kernel's. Nothing that is looked for there needs them.
            return None;
        }
        for _ in 0..DEEPEST {
            // Ids count from 1; 0 is void.
            let found = *self.types.get(usize::try_from(id.checked_sub(1)?).ok()?)?;
            match found.kind {
                STRUCT | UNION => return Some(found),
                8..=11 | 18 => id = found.target,
                _ => return None,
            }
        }
        None
    }

    fn name(&self, at: u32) -> Option<&'a [u8]> {
        let at = usize::try_from(at).ok()?;
        let name = match at.checked_sub(self.base.len()) {
            Some(at) => self.strings.get(at..)?,
            None => self.base.get(at..)?,
        };
        name.split(|&b| b == 0).next()
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes
        .get(at..)?
        .first_chunk()
        .map(|b| u32::from_ne_bytes(*b))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Builds BTF by hand: names are appended as they are used.
    struct Blob {
        types: Vec<u8>,
        strings: Vec<u8>,
        /// Length of the names that these continue.
        base: u32,
    }

    impl Blob {
        fn new() -> Self {
            Self {
                types: Vec::new(),
                strings: vec![0],
                base: 0,
            }
        }

        fn name(&mut self, name: &str) -> u32 {
            if name.is_empty() {
                return 0;
            }
            let at = self.strings.len();
            self.strings.extend_from_slice(name.as_bytes());
            self.strings.push(0);
            self.base + u32::try_from(at).unwrap()
        }

        fn words(&mut self, words: &[u32]) {
            self.types
                .extend(words.iter().flat_map(|w| w.to_ne_bytes()));
        }

        /// A struct or union with members (name, type, bit offset).
        fn composite(&mut self, kind: u32, name: &str, members: &[(&str, u32, u32)]) {
            let header = [
                self.name(name),
                kind << 24 | u32::try_from(members.len()).unwrap(),
                0,
            ];
            self.words(&header);
            for (name, target, offset) in members {
                let member = [self.name(name), *target, *offset];
                self.words(&member);
            }
        }

        fn bytes(&self) -> Vec<u8> {
            let (types, strings) = (
                u32::try_from(self.types.len()).unwrap(),
                u32::try_from(self.strings.len()).unwrap(),
            );
            let mut bytes = 0xeb9f_u16.to_ne_bytes().to_vec();
            bytes.extend_from_slice(&[1, 0]);
            for word in [24, 0, types, types, strings] {
                bytes.extend_from_slice(&u32::to_ne_bytes(word));
            }
            [bytes, self.types.clone(), self.strings.clone()].concat()
        }
    }

    fn sample() -> Vec<u8> {
        let mut blob = Blob::new();
        blob.composite(STRUCT, "", &[("skc_daddr", 0, 0), ("skc_rcv_saddr", 0, 32)]); // 1
        blob.composite(UNION, "", &[("skc_addrpair", 0, 0), ("", 1, 0)]); // 2
        blob.words(&[0, 10 << 24, 2]); // 3: const 2
        blob.composite(STRUCT, "socket", &[("state", 0, 0), ("sk", 0, 192)]); // 4
        blob.composite(STRUCT, "file", &[]); // 5: a homonym without the member
        blob.composite(STRUCT, "file", &[("private_data", 0, 128)]); // 6
        let direct = [
            "skc_cookie",
            "skc_family",
            "skc_state",
            "skc_num",
            "skc_dport",
            "skc_v6_daddr",
            "skc_v6_rcv_saddr",
            "skc_net",
        ];
        let mut members = vec![("", 3, 512)];
        members.extend(
            direct
                .iter()
                .zip(0_u32..)
                .map(|(name, i)| (*name, 0, i * 16)),
        );
        blob.composite(STRUCT, "sock_common", &members); // 7
        for (name, member, bits) in [
            ("sock", "sk_shutdown", 800),
            ("msghdr", "msg_flags", 640),
            ("inet_connection_sock", "icsk_ulp_ops", 1600),
            ("inet_connection_sock", "icsk_ulp_data", 1664),
            ("tcp_ulp_ops", "name", 448),
            ("sk_msg", "sg", 0),
            ("sk_msg_sg", "size", 96),
            ("net", "net_cookie", 64),
        ] {
            blob.composite(STRUCT, name, &[(member, 0, bits)]);
        }
        blob.bytes()
    }

    /// The module's own types; their names continue those of `kernel`.
    fn module(kernel: &[u8]) -> Vec<u8> {
        let mut blob = Blob::new();
        blob.strings.clear();
        blob.base = u32::from_ne_bytes(*kernel[20..].first_chunk().unwrap());
        let members = [("priv_ctx_tx", 0, 192), ("partially_sent_record", 0, 448)];
        blob.composite(STRUCT, "tls_context", &members);
        blob.composite(STRUCT, "tls_sw_context_tx", &[("open_rec", 0, 256)]);
        blob.composite(STRUCT, "tls_rec", &[("msg_plaintext", 0, 192)]);
        blob.bytes()
    }

    #[test]
    fn hand_made() {
        let kernel = sample();
        let found = find(&kernel, Some(&module(&kernel))).unwrap();
        assert_eq!(found[..11], [24, 16, 0, 2, 4, 6, 8, 64, 68, 10, 12]);
        assert_eq!(
            found[11..],
            [100, 80, 200, 208, 56, 0, 12, 24, 56, 32, 24, 14, 8]
        );
        let name = "tls_context";
        let member = "priv_ctx_tx";
        assert_eq!(find(&kernel, None), Err(Error::NoMember { name, member }));
    }

    #[test]
    fn what_is_missing_is_named() {
        let mut blob = Blob::new();
        blob.composite(STRUCT, "socket", &[("state", 0, 0)]);
        assert_eq!(
            find(&blob.bytes(), None),
            Err(Error::NoMember {
                name: "socket",
                member: "sk"
            })
        );
    }

    #[test]
    fn a_struct_that_contains_itself_ends() {
        let mut blob = Blob::new();
        blob.composite(STRUCT, "socket", &[("", 1, 0)]);
        assert_eq!(
            find(&blob.bytes(), None),
            Err(Error::NoMember {
                name: "socket",
                member: "sk"
            })
        );
    }

    #[test]
    fn damage_is_refused_without_a_panic() {
        let whole = sample();
        for length in 0..whole.len() {
            let _ = find(&whole[..length], None);
        }
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 0xff;
            let _ = find(&bytes, None);
        }
        assert!(matches!(find(&whole[..20], None), Err(Error::Malformed(_))));
        assert!(matches!(
            find(b"\x7fELF\0\0\0\0", None),
            Err(Error::Malformed(_))
        ));
    }

    #[test]
    fn this_kernel() {
        // A host of tests may have no TLS: its part is taken from the sample.
        let kernel = std::fs::read("/sys/kernel/btf/vmlinux").unwrap();
        let offsets = find(&kernel, Some(&module(&kernel))).unwrap();
        // The first members of sock_common have not moved since 2013 (include/net/sock.h).
        assert_eq!(offsets[3..9], [16, 18, 14, 12, 0, 4]);
    }
}
