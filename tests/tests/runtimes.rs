//! Programs that bring a runtime of their own: just-in-time compilers, collectors of garbage, thread pools, event loops. They reserve
//! large parts of the address space, keep code in memory that they write, and stop their own threads by signals and by faults.

use std::path::{Path, PathBuf};
use std::process::Command;

use ckpt_tests::job::Job;
use ckpt_tests::story;

fn source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("programs").join(name)
}

fn survives(program: &str, options: &[&str]) {
    story::survives(
        |folder| Job::start(folder, Command::new(options[0]).args(&options[1..]).arg(source(program)).current_dir(folder)),
        Job::output,
    );
}

#[test]
fn node_with_workers_a_thread_pool_and_a_server() {
    survives("workers.js", &["node"]);
}

/// A virtual machine that starts removes the files with the figures of others that have ended (/tmp/hsperfdata_*), also of those that are
/// to be restarted.
#[test]
fn java() {
    survives("Pool.java", &["java", "-Xmx128m", "-XX:+UseG1GC"]);
}

/// This collector stops the program's threads by memory that they may not read, and has every object three times in the address space.
#[test]
fn java_with_coloured_pointers() {
    survives("Pool.java", &["java", "-Xmx256m", "-XX:+UseZGC"]);
}

/// Opcodes between which signals are taken, a timer, and waits that signals interrupt.
#[test]
fn perl_with_signals() {
    let script = "
$| = 1;
my ($alarms, $sum, %seen) = (0, 7);
$SIG{ALRM} = sub { $alarms++; alarm 1 };
alarm 1;
for my $i (1 .. 1500000) {
    $sum = ($sum * 31 + $i) % 1000000007;
    $seen{$sum % 3001} = \"$i $sum\";
    print \"$i $sum\\n\" if $i % 300000 == 0;
}
for my $i (1 .. 60) {
    my $left = 0.02;
    select(undef, undef, undef, $left);
    print \"$i\\n\" if $i % 20 == 0;
}
print join(',', map { $seen{$_} } sort { $a <=> $b } keys %seen), ' ', $alarms > 0, \"\\n\";
";
    story::survives(|folder| Job::start(folder, Command::new("perl").args(["-e", script])), Job::output);
}
