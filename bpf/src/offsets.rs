//! Where the running kernel keeps the few struct members that the programs read themselves.
//!
//! Rust BPF objects carry no CO-RE relocations, so the loader takes the offsets (bytes) from the
//! kernel's BTF and writes them here before it loads the object. The map behind them is frozen,
//! which makes them constants to the verifier.

use aya_ebpf::Global;

/// `struct socket`, member `sk`.
#[unsafe(no_mangle)]
pub static OFF_SOCKET_SK: Global<u32> = Global::new(0);
/// `struct file`, member `private_data`.
#[unsafe(no_mangle)]
pub static OFF_FILE_PRIVATE: Global<u32> = Global::new(0);
/// `struct sock_common`, member `skc_cookie`.
#[unsafe(no_mangle)]
pub static OFF_SKC_COOKIE: Global<u32> = Global::new(0);
/// `struct sock_common`, member `skc_family`.
#[unsafe(no_mangle)]
pub static OFF_SKC_FAMILY: Global<u32> = Global::new(0);
/// `struct sock_common`, member `skc_state`.
#[unsafe(no_mangle)]
pub static OFF_SKC_STATE: Global<u32> = Global::new(0);
/// `struct sock_common`, member `skc_num`.
#[unsafe(no_mangle)]
pub static OFF_SKC_NUM: Global<u32> = Global::new(0);
/// `struct sock_common`, member `skc_dport`.
#[unsafe(no_mangle)]
pub static OFF_SKC_DPORT: Global<u32> = Global::new(0);
/// `struct sock_common`, member `skc_daddr`.
#[unsafe(no_mangle)]
pub static OFF_SKC_DADDR: Global<u32> = Global::new(0);
/// `struct sock_common`, member `skc_rcv_saddr`.
#[unsafe(no_mangle)]
pub static OFF_SKC_RCV_SADDR: Global<u32> = Global::new(0);
/// `struct sock_common`, member `skc_v6_daddr`.
#[unsafe(no_mangle)]
pub static OFF_SKC_V6_DADDR: Global<u32> = Global::new(0);
/// `struct sock_common`, member `skc_v6_rcv_saddr`.
#[unsafe(no_mangle)]
pub static OFF_SKC_V6_RCV_SADDR: Global<u32> = Global::new(0);
/// `struct sock`, member `sk_shutdown`.
#[unsafe(no_mangle)]
pub static OFF_SK_SHUTDOWN: Global<u32> = Global::new(0);
/// `struct msghdr`, member `msg_flags`.
#[unsafe(no_mangle)]
pub static OFF_MSG_FLAGS: Global<u32> = Global::new(0);
/// `struct inet_connection_sock`, member `icsk_ulp_ops`.
#[unsafe(no_mangle)]
pub static OFF_ICSK_ULP_OPS: Global<u32> = Global::new(0);
/// `struct inet_connection_sock`, member `icsk_ulp_data`.
#[unsafe(no_mangle)]
pub static OFF_ICSK_ULP_DATA: Global<u32> = Global::new(0);
/// `struct tcp_ulp_ops`, member `name`.
#[unsafe(no_mangle)]
pub static OFF_ULP_NAME: Global<u32> = Global::new(0);
/// `struct sk_msg`, member `sg`.
#[unsafe(no_mangle)]
pub static OFF_SK_MSG_SG: Global<u32> = Global::new(0);
/// `struct sk_msg_sg`, member `size`.
#[unsafe(no_mangle)]
pub static OFF_SK_MSG_SG_SIZE: Global<u32> = Global::new(0);
/// `struct tls_context`, member `priv_ctx_tx`.
#[unsafe(no_mangle)]
pub static OFF_TLS_PRIV_TX: Global<u32> = Global::new(0);
/// `struct tls_context`, member `partially_sent_record`.
#[unsafe(no_mangle)]
pub static OFF_TLS_PARTIAL: Global<u32> = Global::new(0);
/// `struct tls_sw_context_tx`, member `open_rec`.
#[unsafe(no_mangle)]
pub static OFF_TLS_OPEN_REC: Global<u32> = Global::new(0);
/// `struct tls_rec`, member `msg_plaintext`.
#[unsafe(no_mangle)]
pub static OFF_TLS_REC_PLAIN: Global<u32> = Global::new(0);
/// `struct sock_common`, member `skc_net`.
#[unsafe(no_mangle)]
pub static OFF_SKC_NET: Global<u32> = Global::new(0);
/// `struct net`, member `net_cookie`.
#[unsafe(no_mangle)]
pub static OFF_NET_COOKIE: Global<u32> = Global::new(0);

/// Test-only: bits that take a defence away. Zero in every object that a release loader loads,
/// and then the verifier removes the code behind them.
#[unsafe(no_mangle)]
pub static CONTROLS: Global<u32> = Global::new(0);

/// [`CONTROLS`]: connections that must be sealed are not held.
pub const NO_HOLD: u32 = 1;
/// [`CONTROLS`]: the guard lets everything pass.
pub const NO_GUARD: u32 = 1 << 1;
/// [`CONTROLS`]: tasks inside send and receive are not recorded.
pub const NO_RECORD: u32 = 1 << 2;
/// [`CONTROLS`]: keys are used for ever.
pub const NO_LIMIT: u32 = 1 << 3;
