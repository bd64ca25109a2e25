//! A full disk below the database: what cannot be written is refused, and nothing of it is acknowledged.
//!
//! The disk is a file system in memory, which only root may mount. For any other user the case says that it is skipped.

use std::fs::{self, File, Permissions};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use hooklane::cli::postgres::{DataDir, RestartMode};
use sqlx::{Connection as _, PgConnection};
use tonic::Code;

use crate::load::Load;
use crate::oracle::every_promise_holds;
use crate::scale::Scale;
use crate::stage::{IN_FLIGHT_MAX, Plan, Stage};
use crate::support::eventually;

/// Room for a new cluster, its log and what a case writes.
const SIZE: &str = "size=320m,mode=0755";

#[tokio::test]
async fn a_full_disk_acknowledges_nothing_falsely_and_work_resumes_once_there_is_room() {
    let scale = Scale::of_this_run();
    let Some(disk) = Disk::mount() else {
        skipped();
        return;
    };
    let settings = [("max_wal_size", "64MB"), ("min_wal_size", "32MB"), ("checkpoint_timeout", "30s")];
    let plan = Plan {
        data_dir: DataDir::Persistent(disk.path.join("database")),
        server_settings: settings.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec(),
        ..Plan::default()
    };
    let mut stage = Stage::start(plan).await;
    let load = stage.load();
    for _ in 0..scale.exhaustions {
        load.acknowledge(scale.events).await;
        let ballast = disk.fill();
        stands_still(&load).await;
        fs::remove_file(ballast).expect("room again");
        operate(&mut stage).await;
        stage.resumes(&load, Instant::now()).await;
    }
    load.acknowledge(scale.events).await;
    let (ids, refusals) = load.finish().await;
    let is_allowed = |code: &Code| matches!(code, Code::Unavailable | Code::ResourceExhausted);
    assert!(!refusals.is_empty() && refusals.keys().all(is_allowed), "{refusals:?}");
    every_promise_holds(&stage, &ids, scale.exhaustions * IN_FLIGHT_MAX).await;
    let Stage { replicas, postgres, .. } = stage;
    drop(replicas);
    postgres.stop().await.expect("stopped");
}

/// Waits until nothing is acknowledged any more.
async fn stands_still(load: &Load) {
    let mut seen = (load.count(), Instant::now());
    eventually("the disk is full", || {
        if load.count() > seen.0 {
            seen = (load.count(), Instant::now());
        }
        let is_still = seen.1.elapsed().as_secs() >= 3;
        async move { is_still.then_some(()) }
    })
    .await;
}

/// A server that could not write its log has ended, and may have failed to recover: its operator starts it again.
async fn operate(stage: &mut Stage) {
    if !writes(stage).await {
        stage.restart(RestartMode::Kill).await;
    }
}

async fn writes(stage: &Stage) -> bool {
    const WRITE: &str = "create temporary table room as select generate_series(1, 1000)";
    let Ok(mut database) = PgConnection::connect(&stage.postgres.url("postgres")).await else { return false };
    sqlx::query(WRITE).execute(&mut database).await.is_ok()
}

/// A file system of its own in memory; unmounted when dropped.
struct Disk {
    path: PathBuf,
    // Removed after it.
    _folder: tempfile::TempDir,
}

impl Disk {
    /// `None` where we may not.
    fn mount() -> Option<Self> {
        let folder = tempfile::tempdir_in("/tmp").expect("a folder");
        fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).expect("open to the server's user");
        let path = folder.path().join("disk");
        fs::create_dir(&path).expect("made");
        let is_mounted = quietly(Command::new("mount").args(["-t", "tmpfs", "-o", SIZE, "hooklane-faults"]).arg(&path));
        is_mounted.then_some(Self { path, _folder: folder })
    }

    /// Leaves no room for another page; answers the file that takes it.
    fn fill(&self) -> PathBuf {
        let path = self.path.join("ballast");
        let mut file = File::create(&path).expect("made");
        for size in [1 << 20, 4 << 10] {
            let piece = vec![1; size];
            while file.write_all(&piece).is_ok() {}
        }
        path
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        unmount(&self.path);
    }
}

/// Also while the server still ends: it goes with its last file.
fn unmount(path: &Path) {
    quietly(Command::new("umount").arg("-l").arg(path));
}

fn quietly(command: &mut Command) -> bool {
    command.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

#[expect(clippy::print_stderr, reason = "a case that did not run should not look as if it had")]
fn skipped() {
    eprintln!("SKIPPED: a full disk needs a file system of its own, which only root may mount");
}
