//! TCP connections within the tree: every byte in its place after a restart, in every state that a connection can be in.

use ckpt_tests::needs_root;
use ckpt_tests::passing::is_the_same;

/// What each end has received and sent, small amounts and large ones, and that it goes on.
#[test]
fn both_directions() {
    needs_root!();
    let told = is_the_same(
        "
server = socket.create_server(('127.0.0.1', 0))
pairs = []
for there, back in [(b'', b''), (b'there', b''), (b'', b'back'), (b'x' * 100000, b'y' * 10), (bytes(range(256)) * 4000, b'z' * 300000)]:
    client = socket.create_connection(server.getsockname())
    accepted, _ = server.accept()
    client.sendall(there); accepted.sendall(back)
    pairs.append((client, accepted))
names = [(one.getsockname(), one.getpeername()) for pair in pairs for one in pair]
def read(fro, least):
    data = b''
    while len(data) < least: data += fro.recv(1 << 20)
    return bytes_of(data)
def report():
    print(names == [(one.getsockname(), one.getpeername()) for pair in pairs for one in pair])
    for client, accepted in pairs:
        client.send(b'more'); accepted.send(b'much more')
        client.shutdown(socket.SHUT_WR); accepted.shutdown(socket.SHUT_WR)
        for one in accepted, client:
            data = b''
            while piece := one.recv(1 << 20): data += piece
            print(bytes_of(data))
    another = socket.create_connection(server.getsockname())
    accepted, _ = server.accept()
    another.send(b'new')
    print(accepted.recv(10))
    print('done', flush=True)
",
    );
    assert_eq!(told.len(), 12, "{told:#?}");
    assert_eq!(told[0], "True");
}
