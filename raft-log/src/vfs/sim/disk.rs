//! The simulated disk: directories, files, locks, faults and the count of operations.
//!
//! Used by [`super::SimFs`], which puts a lock around it. Nothing here reads a clock; the only
//! randomness is the disk's own generator, drawn from when power is lost and where a run is cut
//! short.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Component, Path};

use super::file::{FileImage, Keep};
use super::rng::Rng;
use super::{CrashKind, Fault, crashed};

pub(super) type Id = u64;

const ROOT: Id = 0;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Node {
    File(Id),
    Dir(Id),
}

#[derive(Clone, Debug)]
enum DirChange {
    Put {
        name: String,
        node: Node,
    },
    Remove {
        name: String,
    },
    Rename {
        from: String,
        to: String,
        node: Node,
    },
}

type Names = BTreeMap<String, Node>;

#[derive(Clone, Debug, Default)]
struct Dir {
    volatile: Names,
    durable: Names,
    pending: Vec<DirChange>,
}

impl Dir {
    fn change(&mut self, change: DirChange) {
        apply(&mut self.volatile, &change);
        self.pending.push(change);
    }

    fn sync(&mut self) {
        for change in self.pending.drain(..) {
            apply(&mut self.durable, &change);
        }
    }

    fn lose_power(&mut self, rng: &mut Rng) {
        let kept = Keep::draw(rng).prefix(self.pending.len(), rng);
        self.pending.truncate(kept);
        self.sync();
        self.volatile.clone_from(&self.durable);
    }

    /// Everything that a name leads to, or may lead to after a crash.
    fn nodes(&self) -> impl Iterator<Item = Node> + '_ {
        let pending = self.pending.iter().filter_map(|change| match change {
            DirChange::Put { node, .. } | DirChange::Rename { node, .. } => Some(*node),
            DirChange::Remove { .. } => None,
        });
        self.volatile
            .values()
            .chain(self.durable.values())
            .copied()
            .chain(pending)
    }
}

fn apply(names: &mut Names, change: &DirChange) {
    match change {
        DirChange::Put { name, node } => {
            names.insert(name.clone(), *node);
        }
        DirChange::Remove { name } => {
            names.remove(name);
        }
        DirChange::Rename { from, to, node } => {
            names.remove(from);
            names.insert(to.clone(), *node);
        }
    }
}

#[derive(Clone, Debug, Default)]
pub(super) struct File {
    pub(super) image: FileImage,
    /// Handles of this generation.
    handles: usize,
}

#[derive(Clone, Debug)]
pub(super) struct Disk {
    pub(super) rng: Rng,
    /// Counts crashes; a handle of an earlier generation is dead.
    pub(super) generation: u64,
    /// Operations that changed, or would have changed, something.
    pub(super) ops: u64,
    /// Operations left until the run is cut short.
    pub(super) fuse: Option<u64>,
    /// True between the end of the fuse and the crash.
    pub(super) down: bool,
    pub(super) capacity: Option<u64>,
    /// Faults to come, each with the number of operations of its kind that it lets pass first.
    pub(super) faults: Vec<(Fault, u64)>,
    /// Faults that came since somebody asked.
    pub(super) struck: Vec<Fault>,
    dirs: BTreeMap<Id, Dir>,
    files: BTreeMap<Id, File>,
    /// The states between operations, while they are kept.
    pub(super) images: Option<Vec<Disk>>,
    locks: BTreeSet<Id>,
    next_id: Id,
}

impl Disk {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            rng: Rng::new(seed),
            generation: 0,
            ops: 0,
            fuse: None,
            down: false,
            capacity: None,
            faults: Vec::new(),
            struck: Vec::new(),
            images: None,
            dirs: BTreeMap::from([(ROOT, Dir::default())]),
            files: BTreeMap::new(),
            locks: BTreeSet::new(),
            next_id: ROOT + 1,
        }
    }

    // ---- operations, crashes, faults ----

    /// Runs one operation that changes something. Where the fuse ends, chance decides whether it
    /// still takes effect.
    pub(super) fn operate<T>(
        &mut self,
        effect: impl FnOnce(&mut Self) -> io::Result<T>,
    ) -> io::Result<T> {
        self.check_up()?;
        self.ops += 1;
        self.keep_image(|_| ());
        match &mut self.fuse {
            Some(0) => {
                self.down = true;
                if self.rng.chance(1, 2) {
                    // Whether it worked or not, nobody is left to hear of it.
                    let _unheard = effect(self);
                }
                return Err(crashed());
            }
            Some(left) => *left -= 1,
            None => {}
        }
        effect(self)
    }

    /// While images are kept: keeps this state as it would be after `change`.
    pub(super) fn keep_image(&mut self, change: impl FnOnce(&mut Self)) {
        let Some(mut images) = self.images.take() else {
            return;
        };
        let mut image = self.clone();
        // Chances of its own, so that keeping images does not change what the run itself draws.
        image.rng = Rng::new(self.ops);
        image.fuse = None;
        change(&mut image);
        images.push(image);
        self.images = Some(images);
    }

    pub(super) fn check_up(&self) -> io::Result<()> {
        if self.down { Err(crashed()) } else { Ok(()) }
    }

    pub(super) fn crash(&mut self, kind: CrashKind) {
        self.generation += 1;
        self.fuse = None;
        self.down = false;
        self.locks.clear();
        for file in self.files.values_mut() {
            file.handles = 0;
        }
        if kind == CrashKind::Power {
            for dir in self.dirs.values_mut() {
                dir.lose_power(&mut self.rng);
            }
            for file in self.files.values_mut() {
                file.image.lose_power(&mut self.rng);
            }
        }
        self.collect();
    }

    /// True when a fault is due on this operation.
    pub(super) fn faulty(&mut self, kind: Fault) -> bool {
        let mut due = None;
        for (at, (fault, pass)) in self.faults.iter_mut().enumerate() {
            if *fault != kind {
                continue;
            }
            match pass {
                0 => due = due.or(Some(at)),
                _ => *pass -= 1,
            }
        }
        let Some(at) = due else {
            return false;
        };
        self.faults.remove(at);
        self.struck.push(kind);
        true
    }

    /// Forgets files and directories that no name, no handle and no crash can lead to.
    fn collect(&mut self) {
        let mut dirs = BTreeSet::from([ROOT]);
        let mut files = BTreeSet::new();
        let mut queue = vec![ROOT];
        while let Some(id) = queue.pop() {
            for node in self.dirs[&id].nodes() {
                match node {
                    Node::File(file) => {
                        files.insert(file);
                    }
                    Node::Dir(dir) => {
                        if dirs.insert(dir) {
                            queue.push(dir);
                        }
                    }
                }
            }
        }
        self.dirs.retain(|id, _| dirs.contains(id));
        self.files
            .retain(|id, file| file.handles > 0 || files.contains(id));
    }

    // ---- space ----

    /// Bytes by which files may still grow.
    pub(super) fn room(&self) -> u64 {
        let Some(capacity) = self.capacity else {
            return u64::MAX;
        };
        let mut named = BTreeSet::new();
        for dir in self.dirs.values() {
            named.extend(dir.volatile.values().filter_map(|node| match node {
                Node::File(id) => Some(*id),
                Node::Dir(_) => None,
            }));
        }
        let used: usize = self
            .files
            .iter()
            .filter(|(id, file)| file.handles > 0 || named.contains(id))
            .map(|(_, file)| file.image.space())
            .sum();
        capacity.saturating_sub(used as u64)
    }

    // ---- names ----

    fn dir_of(&self, path: &Path) -> io::Result<Id> {
        let mut id = ROOT;
        for name in components(path)? {
            match self.dirs[&id].volatile.get(name) {
                Some(Node::Dir(next)) => id = *next,
                Some(Node::File(_)) => return Err(io::ErrorKind::NotADirectory.into()),
                None => return Err(io::ErrorKind::NotFound.into()),
            }
        }
        Ok(id)
    }

    /// The directory that holds the name, and the name.
    fn place<'a>(&self, path: &'a Path) -> io::Result<(Id, &'a str)> {
        let names = components(path)?;
        let name = names.last().copied().ok_or(io::ErrorKind::InvalidInput)?;
        let parent = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
        Ok((self.dir_of(parent)?, name))
    }

    fn dir_mut(&mut self, id: Id) -> &mut Dir {
        self.dirs
            .get_mut(&id)
            .expect("a directory that was resolved exists")
    }

    pub(super) fn find(&self, path: &Path) -> io::Result<Option<Node>> {
        let (dir, name) = self.place(path)?;
        Ok(self.dirs[&dir].volatile.get(name).copied())
    }

    pub(super) fn find_file(&self, path: &Path) -> io::Result<Id> {
        match self.find(path)? {
            Some(Node::File(id)) => Ok(id),
            Some(Node::Dir(_)) => Err(io::ErrorKind::IsADirectory.into()),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    pub(super) fn create_file(&mut self, path: &Path) -> io::Result<Id> {
        let (dir, name) = self.place(path)?;
        if self.dirs[&dir].volatile.contains_key(name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let id = self.draw_id();
        self.files.insert(id, File::default());
        let (name, node) = (name.to_owned(), Node::File(id));
        self.dir_mut(dir).change(DirChange::Put { name, node });
        Ok(id)
    }

    pub(super) fn make_dir(&mut self, path: &Path) -> io::Result<()> {
        let (dir, name) = self.place(path)?;
        if self.dirs[&dir].volatile.contains_key(name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let id = self.draw_id();
        self.dirs.insert(id, Dir::default());
        let (name, node) = (name.to_owned(), Node::Dir(id));
        self.dir_mut(dir).change(DirChange::Put { name, node });
        Ok(())
    }

    pub(super) fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        let (from_dir, from_name) = self.place(from)?;
        let (to_dir, to_name) = self.place(to)?;
        let node = *self.dirs[&from_dir]
            .volatile
            .get(from_name)
            .ok_or(io::ErrorKind::NotFound)?;
        if let Some(Node::Dir(_)) = self.dirs[&to_dir].volatile.get(to_name) {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        let (from, to) = (from_name.to_owned(), to_name.to_owned());
        if from_dir == to_dir {
            self.dir_mut(from_dir)
                .change(DirChange::Rename { from, to, node });
        } else {
            self.dir_mut(to_dir)
                .change(DirChange::Put { name: to, node });
            self.dir_mut(from_dir)
                .change(DirChange::Remove { name: from });
        }
        Ok(())
    }

    pub(super) fn remove(&mut self, path: &Path) -> io::Result<()> {
        self.find_file(path)?;
        let (dir, name) = self.place(path)?;
        let name = name.to_owned();
        self.dir_mut(dir).change(DirChange::Remove { name });
        Ok(())
    }

    pub(super) fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        let dir = self.dir_of(path)?;
        Ok(self.dirs[&dir].volatile.keys().cloned().collect())
    }

    pub(super) fn sync_dir(&mut self, path: &Path) -> io::Result<()> {
        let dir = self.dir_of(path)?;
        if self.faulty(Fault::SyncDir) {
            self.dir_mut(dir).pending.clear();
            return Err(super::eio());
        }
        self.dir_mut(dir).sync();
        self.collect();
        Ok(())
    }

    // ---- files and locks, by id ----

    pub(super) fn file_mut(&mut self, id: Id) -> &mut File {
        self.files
            .get_mut(&id)
            .expect("a file with a name or a handle exists")
    }

    pub(super) fn open(&mut self, id: Id) {
        self.file_mut(id).handles += 1;
    }

    pub(super) fn close(&mut self, id: Id) {
        let file = self.file_mut(id);
        file.handles -= 1;
        if file.handles == 0 {
            self.collect();
        }
    }

    /// False when somebody holds it.
    pub(super) fn lock(&mut self, id: Id) -> bool {
        self.locks.insert(id)
    }

    pub(super) fn unlock(&mut self, id: Id) {
        self.locks.remove(&id);
    }

    fn draw_id(&mut self) -> Id {
        let id = self.next_id;
        self.next_id += 1;
        id
    }
}

/// The names on the way; relative paths start at the root.
fn components(path: &Path) -> io::Result<Vec<&str>> {
    let mut names = Vec::new();
    for component in path.components() {
        match component {
            Component::RootDir | Component::CurDir => {}
            Component::Normal(name) => {
                names.push(name.to_str().ok_or(io::ErrorKind::InvalidInput)?)
            }
            Component::ParentDir | Component::Prefix(_) => {
                return Err(io::ErrorKind::InvalidInput.into());
            }
        }
    }
    Ok(names)
}
