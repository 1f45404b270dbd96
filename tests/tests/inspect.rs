//! What ckpt tells: `ckpt info`, `ckpt check`, help, the manual and completions, for people and for programs (docs/cli.md).

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use ckpt_tests::ckpt;
use ckpt_tests::job::Job;
use ckpt_tests::watched::{self, Watch};
use ckpt_tests::{maps, needs_root, process, python};
use serde_json::{Value, json};
use tempfile::{TempDir, tempdir};

/// A job with two threads, a pipe, and files, its image, and the report of the checkpoint.
struct Saved {
    _folder: TempDir,
    job: Job,
    image: PathBuf,
    report: Value,
}

impl Saved {
    fn new() -> Saved {
        let folder = tempdir().unwrap();
        let script = "
r, w = os.pipe()
os.write(w, b'in the pipe')
f = open('data', 'w')
b = bytearray(16 << 20)
b[:4 << 20] = os.urandom(4 << 20)
threading.Thread(target=lambda: time.sleep(1000), daemon=True).start()
";
        let job = python::rest_after(folder.path(), script).unwrap();
        process::look(job.pid());
        let image = folder.path().join("image");
        let report = ckpt::checkpoint(job.pid(), &image, &[]);
        Saved { _folder: folder, job, image, report }
    }

    fn info(&self, more: &[&str]) -> String {
        let outcome = ckpt::run(ckpt::command(["info"]).arg(&self.image).args(more)).success();
        assert_eq!(outcome.stderr, "");
        outcome.stdout
    }

    fn json(&self, more: &[&str]) -> Value {
        let text = self.info(&[&["--json"], more].concat());
        assert_eq!(text.matches('\n').count(), 1, "one object on one line: {text}");
        serde_json::from_str(&text).unwrap()
    }
}

/// A folder with a whole image and increments of a job that is dead.
fn watched_folder() -> (TempDir, PathBuf) {
    let folder = tempdir().unwrap();
    // Every increment holds pages.
    let script = "
b = bytearray(os.urandom(1 << 20))
def write():
    while True:
        b[:65536] = os.urandom(65536)
        time.sleep(0.001)
threading.Thread(target=write, daemon=True).start()
";
    let mut job = python::rest_after(folder.path(), script).unwrap();
    let dir = folder.path().join("images");
    let watch = Watch::start(&job, &dir, "20ms", &[]);
    watch.wait_for(4);
    watch.end();
    job.kill();
    (folder, dir)
}

fn folder_info(dir: &Path, more: &[&str]) -> ckpt::Outcome {
    ckpt::run(ckpt::command(["info"]).arg(dir).args(more))
}

#[test]
fn info_of_a_folder() {
    needs_root!();
    let (_folder, dir) = watched_folder();
    let images = watched::images(&dir);
    let info = folder_info(&dir, &["--json"]).success().json();
    assert_eq!((&info["folder"], &info["verified"]), (&json!(dir.to_str().unwrap()), &json!(false)));
    assert_eq!(info["newest"], images.len());
    let points = info["images"].as_array().unwrap();
    assert_eq!(points.len(), images.len());
    for (n, (point, image)) in points.iter().zip(&images).enumerate() {
        let alone = ckpt::run(ckpt::command(["info", "--json"]).arg(image)).success().json();
        assert_eq!(point["number"], n + 1);
        assert_eq!(point["file"], image.to_str().unwrap());
        assert_eq!(point["image_id"], alone["header"]["image_id"]);
        assert_eq!(point["parent_id"], alone["header"]["parent"]["image_id"]);
        assert_eq!(point["parent"], if n > 0 { json!(n) } else { Value::Null });
        assert_eq!(point["kind"], if n > 0 { "increment" } else { "full" });
        for key in ["bytes", "pages_data", "pages_zero", "pages_hole"] {
            assert_eq!(point[key], alone[key], "{key}");
        }
        assert_eq!((&point["chain"], &point["restartable"], &point["fault"]), (&json!(n + 1), &json!(true), &Value::Null));
        assert!(point["time"].as_str().unwrap().ends_with('Z'), "{point}");
    }
    // The columns of the table are aligned.
    let text = folder_info(&dir, &[]).success().stdout;
    let rows: Vec<&str> = text.lines().skip(1).take(images.len() + 1).collect();
    let column = rows[0].find("KIND").unwrap();
    assert!(rows[1][column..].starts_with("full ") && rows[2][column..].starts_with("increment "), "{text}");
    assert!(text.contains("can be restarted; checksums were not checked"), "{text}");
    assert!(folder_info(&dir, &["--verify"]).success().stdout.contains("every checksum was checked"));
}

/// A damaged image is named, and so is what needs it.
#[test]
fn info_of_a_folder_with_damage() {
    needs_root!();
    let (_folder, dir) = watched_folder();
    let images = watched::images(&dir);
    let restartable = |more: &[&str]| {
        let info = folder_info(&dir, &[&["--json"], more].concat()).json();
        let points = info["images"].as_array().unwrap().clone();
        let faults = points.iter().filter_map(|point| point["fault"].as_str().map(str::to_owned)).collect::<Vec<_>>();
        (points.iter().filter(|point| point["restartable"] == true).count(), faults)
    };
    // In the pages of the second, which only a verification reads.
    let mut bytes = fs::read(&images[1]).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    fs::write(&images[1], &bytes).unwrap();
    assert_eq!(restartable(&[]).0, images.len());
    let (usable, faults) = restartable(&["--verify"]);
    assert_eq!((usable, faults.len()), (1, images.len() - 1));
    assert!(faults.iter().all(|fault| fault.contains("000002.ckpt") && fault.contains("damaged")), "{faults:?}");
    let text = folder_info(&dir, &["--verify"]).success().stdout;
    assert_eq!(text.matches("  no: ").count(), images.len() - 1, "{text}");
    // What is gone is missed without a verification.
    fs::remove_file(&images[1]).unwrap();
    let (usable, faults) = restartable(&[]);
    assert_eq!((usable, faults.len()), (1, images.len() - 2));
    assert!(faults[0].contains("000003.ckpt") && faults[0].contains("not there"), "{faults:?}");
    // Nothing is left.
    fs::write(&images[0], "no image").unwrap();
    let outcome = folder_info(&dir, &[]);
    assert!(outcome.stdout.contains("unreadable"), "{}", outcome.stdout);
    assert!(outcome.failure().contains("nothing that can be restarted"));
    let empty = tempdir().unwrap();
    assert!(folder_info(empty.path(), &[]).failure().contains("nothing that can be restarted"));
    assert_eq!(folder_info(&dir, &["-v"]).status.code(), Some(2));
}

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

#[test]
fn info_agrees_with_what_was_checkpointed() {
    needs_root!();
    let saved = Saved::new();
    let (info, report, pid) = (saved.json(&[]), &saved.report, saved.job.pid());
    let mut expected = vec!["file", "header", "container", "tasks", "objects", "mappings", "mapped_bytes"];
    expected.extend(["pages_data", "pages_zero", "pages_hole", "bytes", "verified"]);
    assert!(expected.iter().all(|key| keys(&info).contains(key)), "{info}");
    assert_eq!(info["file"], saved.image.to_str().unwrap());
    assert_eq!(info["header"]["image_id"], report["image_id"]);
    assert_eq!(info["header"]["parent"], Value::Null);
    assert_eq!(info["bytes"], saved.image.metadata().unwrap().len());
    assert_eq!(info["verified"], false);

    let [task] = info["tasks"].as_array().unwrap().as_slice() else { panic!("one process: {info}") };
    assert_eq!(task["pid"], pid);
    assert_eq!(task["threads"], json!(process::tids(pid)));
    assert_eq!(task["threads"].as_array().map(Vec::len), report["threads"].as_u64().map(|n| n as usize));
    assert_eq!(task["comm"], "python3");
    assert_eq!(task["ppid"], std::process::id());

    let pages = |key: &str| info[key].as_u64().unwrap();
    assert_eq!(pages("pages_data"), report["pages_written"].as_u64().unwrap());
    assert_eq!(pages("pages_zero"), report["pages_zero"].as_u64().unwrap());
    assert_eq!(pages("pages_data") + pages("pages_zero") + pages("pages_hole"), report["pages_total"].as_u64().unwrap());
    assert!(pages("pages_data") >= 1024 && pages("pages_zero") >= 3 * 1024 - 1, "{info}");

    // Every mapping of the process but [vsyscall], which no process can do without.
    let text = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let lines: Vec<&str> = text.lines().filter(|line| !line.ends_with("[vsyscall]")).collect();
    assert_eq!(pages("mappings"), lines.len() as u64);
    let size = |line: &&str| {
        let (start, end) = line.split_once(' ').unwrap().0.split_once('-').unwrap();
        u64::from_str_radix(end, 16).unwrap() - u64::from_str_radix(start, 16).unwrap()
    };
    assert_eq!(pages("mapped_bytes"), lines.iter().map(size).sum::<u64>());
    assert!(!maps::read(pid).is_empty());
}

#[test]
fn info_tells_every_record() {
    needs_root!();
    let saved = Saved::new();
    let (info, pid) = (saved.json(&["-v"]), saved.job.pid());
    let table = info["object_table"].as_array().unwrap();
    let total: u64 = info["objects"].as_object().unwrap().values().map(|n| n.as_u64().unwrap()).sum();
    assert_eq!(table.len() as u64, total);
    assert!(table.iter().all(|object| object["objref"].as_u64() > Some(0) && object["kind"].is_string()), "{table:?}");
    // The descriptors of the process are those of its table.
    let fds = table.iter().find(|object| object["kind"] == "fd-table" || object["record"]["slots"].is_array()).unwrap();
    let slots: Vec<i64> = fds["record"]["slots"].as_array().unwrap().iter().map(|slot| slot["fd"].as_i64().unwrap()).collect();
    assert_eq!(slots, process::descriptors(pid).into_keys().map(i64::from).collect::<Vec<_>>());
    let [state] = info["task_states"].as_array().unwrap().as_slice() else { panic!("one process") };
    let tids: Vec<&Value> = state["threads"].as_array().unwrap().iter().map(|thread| &thread["tid"]).collect();
    assert_eq!(json!(tids), json!(process::tids(pid)));
    assert_eq!(info["vmas"].as_array().unwrap().len() as u64, info["mappings"].as_u64().unwrap());
}

#[test]
fn info_for_people() {
    needs_root!();
    let saved = Saved::new();
    let text = saved.info(&[]);
    for part in ["Tasks", "Objects", "Memory", "PID", "THREADS", "python3", "not checked", "mappings", "pipe"] {
        assert!(text.contains(part), "no {part}: {text}");
    }
    let row = text.lines().find(|line| line.contains("python3")).unwrap();
    let fields: Vec<&str> = row.split_whitespace().collect();
    assert_eq!(fields[0], saved.job.pid().to_string());
    assert_eq!(fields[4], "2");
    assert!(text.contains(saved.report["image_id"].as_str().unwrap()));
    let verbose = saved.info(&["-v"]);
    for part in ["Object table", &format!("Process {}", saved.job.pid()), "Thread ", "Mappings"] {
        assert!(verbose.contains(part), "no {part}: {verbose}");
    }
    assert!(saved.info(&["--verify"]).contains("the checksums of all"));
}

#[test]
fn a_verification_adds_what_it_has_found() {
    needs_root!();
    let saved = Saved::new();
    let info = saved.json(&["--verify"]);
    assert_eq!(info["verified"], true);
    assert_eq!(info["unknown_records"], 0);
    assert_eq!(info["bytes_raw"].as_u64().unwrap(), info["pages_data"].as_u64().unwrap() * 4096);
    assert!(info["bytes_stored"].as_u64().unwrap() < info["bytes"].as_u64().unwrap());
    assert_eq!(info["trailer_checksum"].as_str().unwrap().len(), 16);
    let objects: u64 = info["objects"].as_object().unwrap().values().map(|n| n.as_u64().unwrap()).sum();
    assert_eq!(info["records"]["object"], objects);
    assert_eq!(info["records"]["vma"], info["mappings"]);
}

/// From a pipe the same is told but for the size, which is not known.
#[test]
fn s13_info_of_a_stream() {
    needs_root!();
    let saved = Saved::new();
    let mut file = saved.json(&[]);
    file["file"] = json!("-");
    for more in [&["info", "-", "--json"][..], &["info", "-", "--json", "--verify"]] {
        let mut cat = Command::new("cat").arg(&saved.image).stdout(std::process::Stdio::piped()).spawn().unwrap();
        let mut stream = ckpt::run(ckpt::command(more).stdin(cat.stdout.take().unwrap())).success().json();
        cat.wait().unwrap();
        assert_eq!(stream["bytes"], Value::Null);
        stream["bytes"] = file["bytes"].clone();
        for key in keys(&file).into_iter().filter(|key| *key != "verified") {
            assert_eq!(stream[key], file[key], "{key}");
        }
    }
    // Standard input may be a file as well.
    let command = &mut ckpt::command(["info", "-", "--json"]);
    let stdin = ckpt::run(command.stdin(File::open(&saved.image).unwrap())).success().json();
    assert_eq!(stdin, file);
}

#[test]
fn check_tells_every_facility() {
    let outcome = ckpt::run(&mut ckpt::command(["check", "--json"]));
    assert_eq!(outcome.stdout.matches('\n').count(), 1, "{}", outcome.stdout);
    let report = outcome.json();
    let facilities = report["facilities"].as_array().unwrap();
    assert!(facilities.len() > 10, "{report}");
    let text = ckpt::run(&mut ckpt::command(["check"]));
    let mut broken = false;
    for facility in facilities {
        let name = facility["name"].as_str().filter(|name| !name.is_empty()).unwrap();
        let (available, essential) = (facility["available"].as_bool().unwrap(), facility["essential"].as_bool().unwrap());
        let lost = facility["lost"].as_str().filter(|lost| !lost.is_empty()).unwrap_or_else(|| panic!("{facility}"));
        let detail = facility["detail"].as_str().unwrap();
        assert!(text.stdout.contains(name), "{name}: {}", text.stdout);
        assert!(available || !detail.is_empty(), "why is it missing? {facility}");
        assert!(available || text.stdout.contains(lost), "{lost}: {}", text.stdout);
        broken |= essential && !available;
    }
    for outcome in [&outcome, &text] {
        assert_eq!((outcome.status.code(), &*outcome.stderr), (Some(i32::from(broken)), ""));
    }
    let names: std::collections::BTreeSet<&str> = facilities.iter().filter_map(|f| f["name"].as_str()).collect();
    assert_eq!(names.len(), facilities.len(), "every name is there once");
}

/// Without rights, what needs them is missing, and why is said.
#[test]
fn check_is_for_the_caller() {
    needs_root!();
    let available = |report: &Value| {
        let all = report["facilities"].as_array().unwrap().iter();
        all.filter(|f| f["available"] == true).map(|f| f["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let root = available(&ckpt::run(&mut ckpt::command(["check", "--json"])).json());
    let folder = tempdir().unwrap();
    // Where everybody may run it.
    let copy = folder.path().join("ckpt");
    fs::copy(ckpt::binary(), &copy).unwrap();
    fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"]).arg(&copy).args(["check", "--json"]);
    let report = ckpt::run(&mut command).json();
    let user = available(&report);
    assert!(user.len() < root.len() && user.iter().all(|name| root.contains(name)), "{user:?} of {root:?}");
    assert!(report.to_string().contains("not permitted; needs CAP_"), "{report}");
}

#[test]
fn help_manual_and_completions() {
    const SUBCOMMANDS: &[&str] = &["checkpoint", "restart", "info", "check", "thaw", "completions", "man"];
    let said = |arguments: &[&str]| {
        let outcome = ckpt::run(&mut ckpt::command(arguments)).success();
        assert_eq!(outcome.stderr, "", "{arguments:?}");
        assert!(outcome.stdout.len() > 100 || arguments == ["--version"], "{arguments:?}: {}", outcome.stdout);
        outcome.stdout
    };
    let (help, manual) = (said(&["--help"]), said(&["man"]));
    assert!(manual.contains(".TH ckpt 1"), "{manual}");
    assert!(said(&["--version"]).starts_with("ckpt "));
    let documented = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/cli.md")).unwrap();
    for subcommand in SUBCOMMANDS {
        assert!(help.contains(subcommand) && manual.contains(subcommand), "{subcommand}");
        let help = said(&[subcommand, "--help"]);
        let manual = said(&["man", subcommand]);
        assert!(manual.contains(&format!("ckpt-{subcommand}")) || manual.contains(&format!("ckpt {subcommand}")), "{manual}");
        // Every option has its place in docs/cli.md.
        let options = help.split_whitespace().filter_map(|word| word.strip_prefix("--"));
        let name = |word: &str| word.split(|c: char| !c.is_ascii_lowercase() && c != '-').next().unwrap_or("").to_owned();
        for option in options.map(name).filter(|name| !["help", "version", ""].contains(&name.as_str())) {
            assert!(documented.contains(&format!("--{option}")), "docs/cli.md has no --{option} ({subcommand})");
        }
    }
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let completions = said(&["completions", shell]);
        assert!(SUBCOMMANDS.iter().all(|subcommand| completions.contains(subcommand)), "{shell}");
    }
}

/// A progress bar is for a terminal.
#[test]
fn no_progress_in_a_pipe() {
    needs_root!();
    let folder = tempdir().unwrap();
    let mut job = python::rest_after(folder.path(), "b = os.urandom(256 << 20)").unwrap();
    let image = folder.path().join("image");
    let pid = job.pid().to_string();
    let arguments = ["checkpoint", &pid, "--after", "kill", "--codec", "raw", "-o"];
    let outcome = ckpt::run(ckpt::command(arguments).arg(&image)).success();
    assert_eq!(outcome.stderr, "");
    assert!(outcome.stdout.starts_with(&format!("checkpointed pid {pid} (1 thread) to ")), "{}", outcome.stdout);
    assert_eq!(outcome.stdout.matches('\n').count(), 1);
    job.is_killed();
    let outcome = ckpt::try_restart(&image, &["--detach"]).success();
    let _job = Job::adopt(job.pid(), folder.path());
    assert_eq!(outcome.stderr, "");
    assert!(outcome.stdout.starts_with(&format!("restarted pid {pid} (1 thread) in ")), "{}", outcome.stdout);
}

/// A refusal comes before the first byte.
#[test]
fn nothing_is_written_of_what_is_refused() {
    needs_root!();
    let folder = tempdir().unwrap();
    let job = python::rest_after(folder.path(), "f = open('/proc/1/status')").unwrap();
    let image = folder.path().join("stream");
    let mut command = ckpt::command(["checkpoint", &job.pid().to_string(), "-o", "-"]);
    let said = ckpt::run_with_output(command.stdout(File::create(&image).unwrap())).failure();
    assert!(said.contains("looks into pid 1"), "{said}");
    assert_eq!(image.metadata().unwrap().len(), 0);
}
