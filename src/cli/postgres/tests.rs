//! The real thing: each test starts servers of its own, kills what it says, and looks at what is left.

use std::env;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::MetadataExt as _;
use std::process::{Command, Stdio};

use sqlx::{Connection as _, PgConnection};

use super::*;

const DEADLINE: Duration = Duration::from_secs(30);

fn options(data_dir: DataDir) -> Options {
    Options { data_dir, bin_dir: None, durability: Durability::Off, extra_settings: Vec::new() }
}

/// Below the temporary directory, where root's other user can follow.
fn open_dir() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("directory");
    fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("open");
    dir
}

async fn run(postgres: &Postgres, database: &str, statement: &'static str) {
    let mut connection = PgConnection::connect(&postgres.url(database)).await.expect("connect");
    sqlx::raw_sql(statement).execute(&mut connection).await.expect(statement);
    connection.close().await.expect("close");
}

async fn ask(postgres: &Postgres, database: &str, query: &'static str) -> String {
    let mut connection = PgConnection::connect(&postgres.url(database)).await.expect("connect");
    let answer = sqlx::query_scalar(query).fetch_one(&mut connection).await.expect(query);
    connection.close().await.expect("close");
    answer
}

async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < deadline, "not within {DEADLINE:?}: {what}");
        tokio::time::sleep(POLL).await;
    }
}

/// A zombie does not: an orphan of these tests stays one where nobody collects them, as in many containers.
fn runs(pid: u32) -> bool {
    leftover::command_line(pid).is_some()
}

#[tokio::test]
async fn an_ephemeral_server_answers_survives_restarts_and_leaves_nothing() {
    let mut postgres = Postgres::start(options(DataDir::Ephemeral)).await.expect("start");
    let (home, first) = (postgres.home.dir.clone(), postgres.postmaster_pid());
    assert_eq!(ask(&postgres, "postgres", "select current_user::text").await, USER);
    assert_eq!(ask(&postgres, "postgres", "show listen_addresses").await, "");
    let metadata = fs::metadata(&home).expect("home");
    assert_eq!(metadata.mode() & 0o777, 0o700, "the one guard of the socket");
    assert_ne!(metadata.uid(), 0, "the server's user owns it");

    let name = "a name with \"quotes\", spaces + more?&/é";
    for _ in 0..2 {
        postgres.create_database(name).await.expect("create");
    }
    run(&postgres, name, "create table kept as select 'still here' as word").await;
    for mode in [RestartMode::Fast, RestartMode::Immediate, RestartMode::Kill] {
        let before = postgres.postmaster_pid();
        postgres.restart(mode).await.expect("restart");
        assert_ne!(postgres.postmaster_pid(), before);
        assert_eq!(ask(&postgres, name, "select word from kept").await, "still here", "{mode:?}");
    }

    let last = postgres.postmaster_pid();
    assert!(runs(last) && !runs(first));
    postgres.stop().await.expect("stop");
    assert!(!runs(last) && !home.exists());
}

#[tokio::test]
async fn psql_takes_the_url_too() {
    let postgres = Postgres::start(options(DataDir::Ephemeral)).await.expect("start");
    let output = Command::new(postgres.bin_dir().join("psql"))
        .args([&postgres.url("postgres"), "-Atc", "select 'from psql'"])
        .output()
        .expect("psql");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "from psql\n", "{output:?}");
    postgres.stop().await.expect("stop");
}

#[tokio::test]
async fn a_persistent_server_keeps_its_data_and_its_directory_to_itself() {
    let dir = open_dir();
    let persistent = || options(DataDir::Persistent(dir.path().join("not/yet there, \"really\"")));
    let postgres = Postgres::start(persistent()).await.expect("start");
    run(&postgres, "postgres", "create table kept as select 'still here' as word").await;

    let second = Postgres::start(persistent()).await.expect_err("in use");
    assert!(matches!(second, Error::InUse { .. }), "{second}");
    assert!(second.to_string().contains(&format!("process {}", std::process::id())), "{second}");

    postgres.stop().await.expect("stop");
    let postgres = Postgres::start(persistent()).await.expect("start again");
    assert_eq!(ask(&postgres, "postgres", "select word from kept").await, "still here");
    postgres.stop().await.expect("stop again");
}

#[tokio::test]
async fn root_is_told_that_no_server_can_live_below_its_home() {
    if !account::we_are_root().expect("id") {
        return; // an ordinary user's server runs as that user
    }
    let closed = open_dir();
    fs::set_permissions(closed.path(), std::os::unix::fs::PermissionsExt::from_mode(0o700)).expect("close");
    let error = Postgres::start(options(DataDir::Persistent(closed.path().join("dev")))).await.expect_err("closed");
    assert!(matches!(&error, Error::Unreachable { closed: named, .. } if named == closed.path()), "{error}");
}

#[tokio::test]
async fn a_long_path_gets_its_socket_elsewhere() {
    let dir = open_dir();
    let deep = dir.path().join("x".repeat(120));
    let postgres = Postgres::start(options(DataDir::Persistent(deep.clone()))).await.expect("start");
    let sockets = postgres.socket_dir().to_owned();
    assert!(!sockets.starts_with(&deep) && postgres.data_dir().starts_with(fs::canonicalize(&deep).expect("path")));
    assert_eq!(ask(&postgres, "postgres", "select 'hello'").await, "hello");
    postgres.stop().await.expect("stop");
    assert!(!sockets.exists() && deep.exists());
}

#[tokio::test]
async fn a_server_that_an_earlier_run_left_over_is_ended_first() {
    let dir = open_dir();
    let persistent = || options(DataDir::Persistent(dir.path().to_owned()));
    let postgres = Postgres::start(persistent()).await.expect("start");
    run(&postgres, "postgres", "create table kept as select 'still here' as word").await;
    let left_over = postgres.postmaster_pid();

    // A process whose supervisors are gone: the shell, and its child that reads from the pipe.
    let shell = postgres.server.shell_pid();
    let watch = children(shell).into_iter().find(|pid| *pid != left_over).expect("watch");
    for pid in [shell, watch] {
        supervisor::send_signal(pid, "KILL");
    }
    drop(postgres);
    assert!(runs(left_over));

    let postgres = Postgres::start(persistent()).await.expect("start over it");
    assert!(!runs(left_over));
    assert_eq!(ask(&postgres, "postgres", "select word from kept").await, "still here");
    postgres.stop().await.expect("stop");
}

/// Where there is /proc: by the parent's pid, the second field after the name in `stat`.
fn children(parent: u32) -> Vec<u32> {
    let parent_of = |pid: u32| -> Option<u32> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
    };
    let entries = fs::read_dir("/proc").expect("/proc").flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| parent_of(*pid) == Some(parent)).collect()
}

#[tokio::test]
async fn a_pid_file_whose_number_went_to_another_process_does_not_keep_the_server_from_starting() {
    let dir = open_dir();
    let persistent = || options(DataDir::Persistent(dir.path().to_owned()));
    let mut postgres = Postgres::start(persistent()).await.expect("start");
    supervisor::send_signal(postgres.postmaster_pid(), "KILL");
    postgres.server.wait_for_exit().await.expect("killed");
    let (file, mut other) = (leftover::pid_file(postgres.data_dir()), sleeper(postgres.account.as_ref()));
    let text = fs::read_to_string(&file).expect("left by the killed server");
    fs::write(&file, text.replacen(&postgres.postmaster_pid().to_string(), &other.id().to_string(), 1)).expect("write");
    drop(postgres);

    let postgres = Postgres::start(persistent()).await.expect("start");
    postgres.stop().await.expect("stop");
    assert!(other.try_wait().expect("alive").is_none(), "a stranger is not touched");
    other.kill().and_then(|()| other.wait()).expect("end it");
}

/// A process of the server's own user: PostgreSQL asks no more of a pid than to be that.
fn sleeper(account: Option<&Account>) -> std::process::Child {
    use std::os::unix::process::CommandExt as _;
    let mut command = Command::new("sleep");
    command.arg("60");
    if let Some(account) = account {
        command.uid(account.uid).gid(account.gid);
    }
    command.spawn().expect("sleep")
}

/// Not a test by itself: the process that the next one kills.
#[tokio::test]
#[ignore = "run by a_server_ends_with_the_process_that_started_it"]
async fn holds_a_server_until_killed() {
    let postgres = Postgres::start(options(DataDir::Ephemeral)).await.expect("start");
    println!("\nholding {} {}", postgres.postmaster_pid(), postgres.home.dir.display());
    std::future::pending::<()>().await;
}

#[tokio::test]
async fn a_server_ends_with_the_process_that_started_it() {
    let mut holder = Command::new(env::current_exe().expect("this program"))
        .args(["--exact", "cli::postgres::tests::holds_a_server_until_killed", "--ignored", "--nocapture"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("start");
    let lines = BufReader::new(holder.stdout.take().expect("piped")).lines();
    let line = lines.map_while(Result::ok).find(|line| line.starts_with("holding ")).expect("its line");
    let mut words = line.split(' ').skip(1);
    let pid: u32 = words.next().and_then(|word| word.parse().ok()).expect("pid");
    let home = PathBuf::from(words.next().expect("directory"));
    assert!(runs(pid) && home.exists());

    holder.kill().and_then(|()| holder.wait()).expect("SIGKILL");
    eventually("the server is gone", || !runs(pid)).await;
    eventually("its directory is gone", || !home.exists()).await;
}

#[tokio::test]
async fn a_server_that_cannot_start_says_why_at_once() {
    let mut bad = options(DataDir::Ephemeral);
    bad.extra_settings = vec![("no_such_setting".into(), "1".into())];
    let started = Instant::now();
    let error = Postgres::start(bad).await.expect_err("refused").to_string();
    assert!(error.contains("no_such_setting") && error.contains("exit status"), "{error}");
    assert!(started.elapsed() < DEADLINE, "it does not wait for a server that has ended");
}
