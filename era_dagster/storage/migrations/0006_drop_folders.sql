-- Which directory a drop folder was when books were last seen in it: an empty one under its name may be a disk that is away.

CREATE TABLE drop_folders (
    folder text PRIMARY KEY,                 -- absolute
    directory text NOT NULL                  -- device and inode
);
