complete -c vhost-user-vde -l socket-path -d 'Listen on this Unix socket (one NIC; see --nic for more)' -r -F
complete -c vhost-user-vde -l fd -d 'Serve this inherited Unix socket, listening or connected already' -r
complete -c vhost-user-vde -l link -d 'Network that the NIC is plugged into; several make it a member of each' -r
complete -c vhost-user-vde -l queues -d 'Queue pairs of the NIC' -r
complete -c vhost-user-vde -l protocol -d 'What is spoken on the NIC\'s socket [default: vhost-user]' -r -f -a "vhost-user\t'A virtio NIC\'s: the guest\'s virtqueues are served'
stream\t'QEMU\'s netdev stream, for a NIC of any other model: QEMU hands over frame by frame'"
complete -c vhost-user-vde -l nic -d 'A NIC as `socket-path=PATH|fd=N,link=LOCATOR[,link=...][,queues=N][,protocol=P][,id=NAME]`; commas inside values are doubled; NAME begins its lines in the log and is what control commands call it [default: nic0, nic1, ...]' -r
complete -c vhost-user-vde -l join -d 'Two networks that hear each other, as `link=LOCATOR,link=LOCATOR`; commas inside values are doubled' -r
complete -c vhost-user-vde -l control -d 'Listen for commands on this Unix socket, which nobody but us may connect to' -r -F
complete -c vhost-user-vde -l control-fd -d 'Listen for commands on this inherited Unix socket' -r
complete -c vhost-user-vde -l description -d 'Text that the networks show for our connections' -r
complete -c vhost-user-vde -l poll-us -d 'Look for frames without a break for so many microseconds, up to a second, after the last one, before sleeping until the next; saves the wake-up of each side, takes a core per busy queue pair' -r
complete -c vhost-user-vde -l capture -d 'Write the frames of the NIC to this file, which Wireshark reads; of several, NIC 1 has one that ends in .nic1 before its extension. A named pipe has to have a reader within 10 s' -r -F
complete -c vhost-user-vde -l socket-owner -d 'Give the sockets that we make to this user' -r
complete -c vhost-user-vde -l log-level -d 'What goes to the standard error: off, error, warn, info or debug' -r
complete -c vhost-user-vde -l pid-file -d 'Keep our process number in this file from when all is up until the end' -r -F
complete -c vhost-user-vde -l ready-fd -d 'Write READY or ERROR STATUS SENTENCE to this descriptor once it is decided' -r
complete -c vhost-user-vde -l lifeline-fd -d 'End when the other end of this pipe is closed' -r
complete -c vhost-user-vde -l private-dir -d 'Remove this directory at the end, with what vdeq keeps in it, if there is nothing else then' -r -F
complete -c vhost-user-vde -l no-offloads -d 'Let the guest do its checksums and its segmentation itself'
complete -c vhost-user-vde -l keep-going -d 'Serve without a network that cannot be joined yet, and try it again and again'
complete -c vhost-user-vde -l one-off -d 'Serve one front end per NIC, and end when all have gone'
complete -c vhost-user-vde -l follow-front-end -d 'End with the process that connects to a NIC first, with the last NIC that is deleted, and after a minute in which nobody came: for a virtual machine that runs already and cannot be given a life line'
complete -c vhost-user-vde -l supervise -d 'Work in a child process; when a signal kills that, another one takes its place, serves what it served, and tries the networks again and again'
complete -c vhost-user-vde -l print-capabilities -d 'Print what this back end is as JSON, and exit'
complete -c vhost-user-vde -s h -l help -d 'Print help (see more with \'--help\')'
complete -c vhost-user-vde -s V -l version -d 'Print version'
