//! UDP sockets, from which many packets are read at a time.
#![expect(unsafe_code, reason = "no library that is small has recvmmsg")]

use std::io;
use std::mem;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::packet::mend::Arrival;

/// Packets that are read at a time.
const BATCH: usize = 64;
/// Bytes for each: no UDP packet has more.
const PACKET: usize = 1 << 16;
/// How long to wait for packets, so that the thread can look whether it is to end.
const WAIT_MS: i32 = 20;
/// A socket with room for so many bytes holds what comes in some hundred microseconds, at 100 Gb/s.
const ROOMY: libc::c_int = 4 << 20;

/// UDP sockets that take turns.
#[derive(Debug)]
pub struct Sockets {
    sockets: Vec<OwnedFd>,
    memory: Vec<u8>,
}

impl Sockets {
    /// Read from these sockets.
    #[must_use]
    pub fn new(sockets: Vec<OwnedFd>) -> Self {
        Self { sockets, memory: vec![0; BATCH * PACKET] }
    }

    /// Whether each has so much room that packets may wait in it.
    #[must_use]
    pub fn are_roomy(&self) -> bool {
        self.sockets.iter().all(|socket| room(socket).is_some_and(|bytes| bytes >= ROOMY))
    }

    /// Wait a moment for packets, and give those of one batch of each socket.
    ///
    /// # Errors
    ///
    /// If a socket cannot be read.
    pub fn read(&mut self, take: &mut dyn FnMut(&[u8], Arrival)) -> io::Result<()> {
        for i in self.wait()? {
            let Some(socket) = self.sockets.get(i) else { continue };
            receive(socket, &mut self.memory, take)?;
        }
        Ok(())
    }

    /// Wait for packets. Returns which sockets have some.
    fn wait(&self) -> io::Result<Vec<usize>> {
        let mut looks: Vec<libc::pollfd> = self
            .sockets
            .iter()
            .map(|socket| libc::pollfd { fd: socket.as_raw_fd(), events: libc::POLLIN, revents: 0 })
            .collect();
        // SAFETY: the pointer and the length are those of the vector, which lives until the call returns.
        let ready = unsafe { libc::poll(looks.as_mut_ptr(), looks.len() as libc::nfds_t, WAIT_MS) };
        if ready < 0 {
            let error = io::Error::last_os_error();
            return if error.kind() == io::ErrorKind::Interrupted { Ok(Vec::new()) } else { Err(error) };
        }
        Ok(looks.iter().enumerate().filter(|(_, look)| look.revents != 0).map(|(i, _)| i).collect())
    }
}

/// The size of a socket's buffer in the kernel.
fn room(socket: &OwnedFd) -> Option<libc::c_int> {
    let mut bytes: libc::c_int = 0;
    let mut size = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: both pointers are those of variables that live until the call returns, of the size that is told.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVBUF,
            ptr::from_mut(&mut bytes).cast(),
            &raw mut size,
        )
    };
    (result == 0).then_some(bytes)
}

/// The time, in nanoseconds since 1970.
pub(super) fn now() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos());
    i64::try_from(now).unwrap_or(i64::MAX)
}

/// Read what a socket has, a batch at most, without waiting.
fn receive(socket: &OwnedFd, memory: &mut [u8], take: &mut dyn FnMut(&[u8], Arrival)) -> io::Result<()> {
    // SAFETY: all zeros are a valid value of these C structures: null pointers and lengths of 0.
    let (mut names, mut headers) =
        unsafe { (mem::zeroed::<[libc::sockaddr_storage; BATCH]>(), mem::zeroed::<[libc::mmsghdr; BATCH]>()) };
    let mut vectors = [libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 }; BATCH];
    let parts = memory.chunks_exact_mut(PACKET).zip(&mut names).zip(&mut headers).zip(&mut vectors);
    for (((buffer, name), header), vector) in parts {
        *vector = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
        header.msg_hdr.msg_name = ptr::from_mut(name).cast();
        header.msg_hdr.msg_namelen = size_of::<libc::sockaddr_storage>() as u32;
        header.msg_hdr.msg_iov = vector;
        header.msg_hdr.msg_iovlen = 1;
    }
    // SAFETY: each header points to a name, a vector and through it a buffer of its own, with the lengths that they have.
    // All of them live until the call returns, and nobody else uses them meanwhile.
    let received = unsafe {
        libc::recvmmsg(socket.as_raw_fd(), headers.as_mut_ptr(), BATCH as u32, libc::MSG_DONTWAIT, ptr::null_mut())
    };
    let Ok(received) = usize::try_from(received) else {
        let error = io::Error::last_os_error();
        let again = matches!(
            error.kind(),
            io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted | io::ErrorKind::ConnectionRefused
        );
        return if again { Ok(()) } else { Err(error) };
    };
    let time = now();
    for ((buffer, name), header) in memory.chunks_exact(PACKET).zip(&names).zip(&headers).take(received) {
        if let Some(data) = buffer.get(..header.msg_len as usize) {
            take(data, Arrival { sender: sender(name), time });
        }
    }
    Ok(())
}

/// The address of a sender, and 16 bits of port; of an IPv6 address, the last 32 bits.
fn sender(name: &libc::sockaddr_storage) -> u64 {
    let name = ptr::from_ref(name);
    match i32::from(
        // SAFETY: the structure is whole, and the kernel has filled it or left it zero.
        unsafe { (*name).ss_family },
    ) {
        libc::AF_INET => {
            // SAFETY: by its family, it is such an address, which is smaller and not aligned more strictly.
            let address = unsafe { &*name.cast::<libc::sockaddr_in>() };
            number(u32::from_be(address.sin_addr.s_addr), u16::from_be(address.sin_port))
        }
        libc::AF_INET6 => {
            // SAFETY: as above.
            let address = unsafe { &*name.cast::<libc::sockaddr_in6>() };
            let [.., a, b, c, d] = address.sin6_addr.s6_addr;
            number(u32::from_be_bytes([a, b, c, d]), u16::from_be(address.sin6_port))
        }
        _ => 0,
    }
}

fn number(address: u32, port: u16) -> u64 {
    u64::from(address) << 16 | u64::from(port)
}

/// The number that stands for a sender.
#[must_use]
pub fn sender_of(address: SocketAddr) -> u64 {
    match address {
        SocketAddr::V4(address) => number(u32::from(*address.ip()), address.port()),
        SocketAddr::V6(address) => {
            let [.., a, b, c, d] = address.ip().octets();
            number(u32::from_be_bytes([a, b, c, d]), address.port())
        }
    }
}
