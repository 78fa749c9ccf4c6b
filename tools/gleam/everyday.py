"""Everyday tasks in the words people use, written for gleam: the tldr pages name each command once, in one phrasing.

A line is a command and the questions that lead to it, separated by ` | `; a pipe within a command is written `\\|`.
Nothing here repeats a held-out question or command: `everyday` leaves out what the caller holds back.
"""

from collections.abc import Collection

_TASKS = r"""
tar xzf path/to/archive.tar.gz | extract a gzipped tar archive | unpack a tar.gz file | extract a tar.gz archive
tar czf path/to/archive.tar.gz path/to/directory | create a gzipped tar archive | compress a directory
tar tf path/to/archive.tar | list the files in a tar archive | show what is in a tar archive
unzip path/to/archive.zip | extract a zip archive | unzip a file
zip -r path/to/archive.zip path/to/directory | zip a directory | create a zip archive of a directory
ls -la | list all files, including hidden ones | show hidden files | list all files with details
ls -lhS | list files sorted by size | show the largest files first
pwd | print the current directory | which directory am I in
cd .. | go up one directory | change to the parent directory
mkdir -p path/to/directory | create a directory and its parents | make a nested directory
rm -r path/to/directory | delete a directory and everything in it | remove a directory recursively
cp -r path/to/source path/to/target | copy a directory | copy a directory recursively
mv path/to/old_name path/to/new_name | rename a file | move a file
ln -s path/to/target path/to/link | create a symbolic link | make a symlink
find . -name "*.txt" | find files by name | find all text files in this directory
find . -size +100M | find large files | find files larger than 100 MB
find . -mtime -1 | find files changed in the last day | find recently modified files
grep -rn "pattern" path/to/directory | search for text in all files of a directory | search a directory for a word
grep -i "pattern" path/to/file | search a file without regard to case | case-insensitive search in a file
sed -i 's/old/new/g' path/to/file | replace text in a file | replace a word in a file
wc -l path/to/file | count the lines of a file | how many lines does a file have
head -n 10 path/to/file | show the first lines of a file | print the first ten lines of a file
tail -f path/to/file | follow a log file | watch a file as it grows
sort path/to/file | sort the lines of a file | sort a file
sort path/to/file \| uniq -c | count how often each line occurs | count repeated lines
diff path/to/file1 path/to/file2 | compare two files | show the differences between two files
df -h | show free disk space | how much disk space is left | show disk usage
du -sh path/to/directory | show the size of a directory | how large is a directory
free -h | show memory usage | how much memory is free
top | show running processes as they change | monitor processes
ps aux | list all running processes | show all processes
kill process_id | stop a process by its id | kill a process
pkill process_name | kill a process by its name | stop a process by name
uname -a | show the kernel version | show system information
uptime | how long has this machine been running | show the load average
whoami | show the current user | who am I logged in as
chmod +x path/to/script.sh | make a script executable | make a file executable
chown user:group path/to/file | change the owner of a file | change who owns a file
sudo apt install package | install a package on Debian | install a package with apt
sudo apt update && sudo apt upgrade | update all packages on Debian | upgrade all packages with apt
systemctl status service | show the status of a service | is a service running
sudo systemctl restart service | restart a service | restart a systemd service
journalctl -u service -f | follow the log of a service | show the log of a service as it grows
ssh user@host | connect to a remote machine | log in to a remote host
ssh-keygen -t ed25519 | create an ssh key | generate a new ssh key
scp path/to/file user@host:path/to/directory | copy a file to a remote machine | copy a file over ssh
rsync -av path/to/source/ path/to/target/ | synchronise two directories | mirror a directory
curl -O https://example.com/file | download a file | download a file from a url
curl -I https://example.com | show the headers of a web page | show the http headers of a url
ping host | check whether a host answers | test the connection to a host
ip addr | show my ip address | list network interfaces
ss -tlnp | list open ports | show listening ports
git clone url | clone a git repository | copy a remote git repository
git switch -c branch | create a new git branch | create a branch and switch to it
git switch branch | switch to another git branch | change to another branch
git branch --all | list all git branches | show local and remote branches
git commit -am "message" | commit all changed files | commit all changes with git
git log --oneline | show the git history on one line each | show a short git log
git diff --staged | show staged changes | show what will be committed
git stash | put git changes aside | stash my changes
git revert commit | undo a git commit | revert a commit
git push -u origin branch | push a new branch | push a branch to the remote for the first time
git pull --rebase | pull with rebase | update a branch and rebase
docker ps -a | list all docker containers | show stopped containers too
docker run -it image | run a docker image interactively | start a container with a terminal
docker build -t name . | build a docker image | build an image from a Dockerfile
python3 -m venv path/to/venv | create a python virtual environment | make a virtual environment
python3 -m http.server 8000 | serve a directory over http | start a simple web server
pip install package | install a python package | install a package with pip
ffmpeg -i path/to/input.mp4 path/to/output.mp3 | extract the sound of a video | convert a video to mp3
convert path/to/input.png path/to/output.jpg | convert an image to another format | convert png to jpg
crontab -e | edit scheduled jobs | edit the crontab
history | show previous commands | show the command history
man command | show the manual of a command | read a manual page
watch -n 2 command | run a command every two seconds | repeat a command regularly
sha256sum path/to/file | compute the sha256 of a file | show the checksum of a file
date +%F | print the date of today | show the current date
"""


def everyday(held_out: Collection[str]) -> list[tuple[str, str]]:
    """(question, command) pairs, without those whose question or command, in lower case, is held out."""
    pairs = []
    for line in _TASKS.strip().splitlines():
        command, *questions = line.split(" | ")
        pairs += [(question, command.replace("\\|", "|")) for question in questions]
    return [pair for pair in pairs if not {text.lower() for text in pair} & set(held_out)]
