# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_vdectl_global_optspecs
    string join \n h/help V/version
end

function __fish_vdectl_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_vdectl_global_optspecs) -- $cmd 2>/dev/null
    or return
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_vdectl_using_subcommand
    set -l cmd (__fish_vdectl_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c vdectl -n "__fish_vdectl_needs_command" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c vdectl -n "__fish_vdectl_needs_command" -s V -l version -d 'Print version'
complete -c vdectl -n "__fish_vdectl_needs_command" -f -a "vms" -d 'Show the VMs that run here'
complete -c vdectl -n "__fish_vdectl_needs_command" -f -a "list" -d 'Show the NICs of a VM, with their links and counters'
complete -c vdectl -n "__fish_vdectl_needs_command" -f -a "attach" -d 'Plug a NIC on a VDE network into a running VM'
complete -c vdectl -n "__fish_vdectl_needs_command" -f -a "detach" -d 'Take a NIC out of a running VM'
complete -c vdectl -n "__fish_vdectl_needs_command" -f -a "link" -d 'Plug the cables of a NIC into other networks, or pull them'
complete -c vdectl -n "__fish_vdectl_needs_command" -f -a "top" -d 'Show all VMs, NICs and links live'
complete -c vdectl -n "__fish_vdectl_needs_command" -f -a "stats" -d 'Print the counters'
complete -c vdectl -n "__fish_vdectl_needs_command" -f -a "capture" -d 'Write the frames of a NIC to a file for Wireshark'
complete -c vdectl -n "__fish_vdectl_needs_command" -f -a "libvirt" -d 'Plug NICs in and out of domains of libvirt, and see to these'
complete -c vdectl -n "__fish_vdectl_needs_command" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c vdectl -n "__fish_vdectl_using_subcommand vms" -l json -d 'As JSON'
complete -c vdectl -n "__fish_vdectl_using_subcommand vms" -s h -l help -d 'Print help'
complete -c vdectl -n "__fish_vdectl_using_subcommand list" -l wide -d 'With netdevs, addresses, sockets and features'
complete -c vdectl -n "__fish_vdectl_using_subcommand list" -l json -d 'As JSON'
complete -c vdectl -n "__fish_vdectl_using_subcommand list" -s h -l help -d 'Print help'
complete -c vdectl -n "__fish_vdectl_using_subcommand attach" -l id -d 'Name of the NIC [default: the first of vde0, vde1, ... that is free]' -r
complete -c vdectl -n "__fish_vdectl_using_subcommand attach" -l mac -d 'Its MAC address [default: a random one]' -r
complete -c vdectl -n "__fish_vdectl_using_subcommand attach" -l model -d 'What the guest sees: virtio, or a device of QEMU\'s (e1000, rtl8139, ...), whose frames pass through QEMU' -r
complete -c vdectl -n "__fish_vdectl_using_subcommand attach" -l queues -d 'Queue pairs' -r
complete -c vdectl -n "__fish_vdectl_using_subcommand attach" -l bus -d 'Bus that it is plugged into [default: a free place is looked for]' -r
complete -c vdectl -n "__fish_vdectl_using_subcommand attach" -l addr -d 'Address on the bus' -r
complete -c vdectl -n "__fish_vdectl_using_subcommand attach" -l mtu -d 'Largest packet that the guest is told to send, in bytes' -r
complete -c vdectl -n "__fish_vdectl_using_subcommand attach" -l wait -d 'Wait until the guest\'s driver is up, so many seconds at most' -r
complete -c vdectl -n "__fish_vdectl_using_subcommand attach" -s h -l help -d 'Print help'
complete -c vdectl -n "__fish_vdectl_using_subcommand detach" -l wait -d 'How long the guest may take, in seconds' -r
complete -c vdectl -n "__fish_vdectl_using_subcommand detach" -l force -d 'Pull the cable at least, if the guest does not let go'
complete -c vdectl -n "__fish_vdectl_using_subcommand detach" -s h -l help -d 'Print help'
complete -c vdectl -n "__fish_vdectl_using_subcommand link; and not __fish_seen_subcommand_from add remove replace down up help" -l config -d 'Also for when the domain is started the next time, of a domain of libvirt'
complete -c vdectl -n "__fish_vdectl_using_subcommand link; and not __fish_seen_subcommand_from add remove replace down up help" -s h -l help -d 'Print help'
complete -c vdectl -n "__fish_vdectl_using_subcommand link; and not __fish_seen_subcommand_from add remove replace down up help" -a "add" -d 'Plug it into one more network'
complete -c vdectl -n "__fish_vdectl_using_subcommand link; and not __fish_seen_subcommand_from add remove replace down up help" -a "remove" -d 'Pull one cable'
complete -c vdectl -n "__fish_vdectl_using_subcommand link; and not __fish_seen_subcommand_from add remove replace down up help" -a "replace" -d 'Move a cable to another network, without losing a frame'
complete -c vdectl -n "__fish_vdectl_using_subcommand link; and not __fish_seen_subcommand_from add remove replace down up help" -a "down" -d 'Let the guest see that the cable is pulled'
complete -c vdectl -n "__fish_vdectl_using_subcommand link; and not __fish_seen_subcommand_from add remove replace down up help" -a "up" -d 'Let the guest see that the cable is plugged in'
complete -c vdectl -n "__fish_vdectl_using_subcommand link; and not __fish_seen_subcommand_from add remove replace down up help" -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c vdectl -n "__fish_vdectl_using_subcommand link; and __fish_seen_subcommand_from add" -l config -d 'Also for when the domain is started the next time, of a domain of libvirt'
complete -c vdectl -n "__fish_vdectl_using_subcommand link; and __fish_seen_subcommand_from add" -s h -l help -d 'Print help'
complete -c vdectl -n "__fish_vdectl_using_subcommand link; and __fish_seen_subcommand_from remove" -l config -d 'Also for when the domain is started the next time, of a domain of libvirt'
complete -c vdectl -n "__fish_vdectl_using_subcommand link; and __fish_seen_subcommand_from remove" -s h -l help -d 'Print help'
complete -c vdectl -n "__fish_vdectl_using_subcommand link; and __fish_seen_subcommand_from replace" -l config -d 'Also for when the domain is started the next time, of a domain of libvirt'
complete -c vdectl -n "__fish_vdectl_using_subcommand link; and __fish_seen_subcommand_from replace" -s h -l help -d 'Print help'
complete -c vdectl -n "__fish_vdectl_using_subcommand link; and __fish_seen_subcommand_from down" -l config -d 'Also for when the domain is started the next time, of a domain of libvirt'
complete -c vdectl -n "__fish_vdectl_using_subcommand link; and __fish_seen_subcommand_from down" -s h -l help -d 'Print help'
complete -c vdectl -n "__fish_vdectl_using_subcommand link; and __fish_seen_subcommand_from up" -l config -d 'Also for when the domain is started the next time, of a domain of libvirt'
complete -c vdectl -n "__fish_vdectl_using_subcommand link; and __fish_seen_subcommand_from up" -s h -l help -d 'Print help'
complete -c vdectl -n "__fish_vdectl_using_subcommand link; and __fish_seen_subcommand_from help" -f -a "add" -d 'Plug it into one more network'
complete -c vdectl -n "__fish_vdectl_using_subcommand link; and __fish_seen_subcommand_from help" -f -a "remove" -d 'Pull one cable'
complete -c vdectl -n "__fish_vdectl_using_subcommand link; and __fish_seen_subcommand_from help" -f -a "replace" -d 'Move a cable to another network, without losing a frame'
complete -c vdectl -n "__fish_vdectl_using_subcommand link; and __fish_seen_subcommand_from help" -f -a "down" -d 'Let the guest see that the cable is pulled'
complete -c vdectl -n "__fish_vdectl_using_subcommand link; and __fish_seen_subcommand_from help" -f -a "up" -d 'Let the guest see that the cable is plugged in'
complete -c vdectl -n "__fish_vdectl_using_subcommand link; and __fish_seen_subcommand_from help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c vdectl -n "__fish_vdectl_using_subcommand top" -l interval -d 'Seconds between two looks' -r
complete -c vdectl -n "__fish_vdectl_using_subcommand top" -s h -l help -d 'Print help'
complete -c vdectl -n "__fish_vdectl_using_subcommand stats" -l output -d 'Write to this file, which is replaced at once and as a whole' -r -F
complete -c vdectl -n "__fish_vdectl_using_subcommand stats" -l listen -d 'Listen on this Unix socket, and give the text to everyone who connects' -r -F
complete -c vdectl -n "__fish_vdectl_using_subcommand stats" -l prometheus -d 'In the text format of Prometheus'
complete -c vdectl -n "__fish_vdectl_using_subcommand stats" -s h -l help -d 'Print help'
complete -c vdectl -n "__fish_vdectl_using_subcommand capture" -l link -d 'Only what passes through this link' -r
complete -c vdectl -n "__fish_vdectl_using_subcommand capture" -l max-bytes -d 'End before the file has more bytes than that; K, M and G are 2^10, 2^20 and 2^30' -r
complete -c vdectl -n "__fish_vdectl_using_subcommand capture" -l max-seconds -d 'End after so many seconds' -r
complete -c vdectl -n "__fish_vdectl_using_subcommand capture" -s h -l help -d 'Print help'
complete -c vdectl -n "__fish_vdectl_using_subcommand libvirt; and not __fish_seen_subcommand_from attach detach xml check help" -l connect -d 'The libvirt [default: the one that virsh talks to by itself]' -r
complete -c vdectl -n "__fish_vdectl_using_subcommand libvirt; and not __fish_seen_subcommand_from attach detach xml check help" -s h -l help -d 'Print help'
complete -c vdectl -n "__fish_vdectl_using_subcommand libvirt; and not __fish_seen_subcommand_from attach detach xml check help" -f -a "attach" -d 'Plug a NIC on a VDE network into a domain'
complete -c vdectl -n "__fish_vdectl_using_subcommand libvirt; and not __fish_seen_subcommand_from attach detach xml check help" -f -a "detach" -d 'Take a NIC out of a domain'
complete -c vdectl -n "__fish_vdectl_using_subcommand libvirt; and not __fish_seen_subcommand_from attach detach xml check help" -f -a "xml" -d 'Print what a NIC takes in the XML of a domain'
complete -c vdectl -n "__fish_vdectl_using_subcommand libvirt; and not __fish_seen_subcommand_from attach detach xml check help" -f -a "check" -d 'Say what a domain lacks for its VDE networks'
complete -c vdectl -n "__fish_vdectl_using_subcommand libvirt; and not __fish_seen_subcommand_from attach detach xml check help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c vdectl -n "__fish_vdectl_using_subcommand libvirt; and __fish_seen_subcommand_from attach" -l id -d 'Name of the NIC; its alias is ua-NAME [default: the first of vde0, vde1, ... that is free]' -r
complete -c vdectl -n "__fish_vdectl_using_subcommand libvirt; and __fish_seen_subcommand_from attach" -l mac -d 'Its MAC address [default: a random one]' -r
complete -c vdectl -n "__fish_vdectl_using_subcommand libvirt; and __fish_seen_subcommand_from attach" -l queues -d 'Queue pairs' -r
complete -c vdectl -n "__fish_vdectl_using_subcommand libvirt; and __fish_seen_subcommand_from attach" -l wait -d 'Wait until the guest\'s driver is up, so many seconds at most' -r
complete -c vdectl -n "__fish_vdectl_using_subcommand libvirt; and __fish_seen_subcommand_from attach" -l connect -d 'The libvirt [default: the one that virsh talks to by itself]' -r
complete -c vdectl -n "__fish_vdectl_using_subcommand libvirt; and __fish_seen_subcommand_from attach" -l config -d 'Also for when the domain is started the next time, and only for then if it does not run'
complete -c vdectl -n "__fish_vdectl_using_subcommand libvirt; and __fish_seen_subcommand_from attach" -s h -l help -d 'Print help'
complete -c vdectl -n "__fish_vdectl_using_subcommand libvirt; and __fish_seen_subcommand_from detach" -l wait -d 'How long the guest may take, in seconds' -r
complete -c vdectl -n "__fish_vdectl_using_subcommand libvirt; and __fish_seen_subcommand_from detach" -l connect -d 'The libvirt [default: the one that virsh talks to by itself]' -r
complete -c vdectl -n "__fish_vdectl_using_subcommand libvirt; and __fish_seen_subcommand_from detach" -l config -d 'Also for when the domain is started the next time, and only for then if it does not run'
complete -c vdectl -n "__fish_vdectl_using_subcommand libvirt; and __fish_seen_subcommand_from detach" -s h -l help -d 'Print help'
complete -c vdectl -n "__fish_vdectl_using_subcommand libvirt; and __fish_seen_subcommand_from xml" -l id -d 'Name of the NIC; its alias is ua-NAME [default: none, and the socket of the first NIC]' -r
complete -c vdectl -n "__fish_vdectl_using_subcommand libvirt; and __fish_seen_subcommand_from xml" -l mac -d 'Its MAC address [default: a random one]' -r
complete -c vdectl -n "__fish_vdectl_using_subcommand libvirt; and __fish_seen_subcommand_from xml" -l queues -d 'Queue pairs' -r
complete -c vdectl -n "__fish_vdectl_using_subcommand libvirt; and __fish_seen_subcommand_from xml" -l domain -d 'Name of the domain, which is in the path of the NIC\'s socket' -r
complete -c vdectl -n "__fish_vdectl_using_subcommand libvirt; and __fish_seen_subcommand_from xml" -l part -d 'Only this part, without remarks' -r -f -a "metadata\t'Its network, as virsh metadata --set takes it'
memory\t'What makes the guest\'s memory one that the back end can map'
interface\t'Its interface, as virsh attach-device takes it'"
complete -c vdectl -n "__fish_vdectl_using_subcommand libvirt; and __fish_seen_subcommand_from xml" -l connect -d 'The libvirt [default: the one that virsh talks to by itself]' -r
complete -c vdectl -n "__fish_vdectl_using_subcommand libvirt; and __fish_seen_subcommand_from xml" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c vdectl -n "__fish_vdectl_using_subcommand libvirt; and __fish_seen_subcommand_from check" -l connect -d 'The libvirt [default: the one that virsh talks to by itself]' -r
complete -c vdectl -n "__fish_vdectl_using_subcommand libvirt; and __fish_seen_subcommand_from check" -s h -l help -d 'Print help'
complete -c vdectl -n "__fish_vdectl_using_subcommand libvirt; and __fish_seen_subcommand_from help" -f -a "attach" -d 'Plug a NIC on a VDE network into a domain'
complete -c vdectl -n "__fish_vdectl_using_subcommand libvirt; and __fish_seen_subcommand_from help" -f -a "detach" -d 'Take a NIC out of a domain'
complete -c vdectl -n "__fish_vdectl_using_subcommand libvirt; and __fish_seen_subcommand_from help" -f -a "xml" -d 'Print what a NIC takes in the XML of a domain'
complete -c vdectl -n "__fish_vdectl_using_subcommand libvirt; and __fish_seen_subcommand_from help" -f -a "check" -d 'Say what a domain lacks for its VDE networks'
complete -c vdectl -n "__fish_vdectl_using_subcommand libvirt; and __fish_seen_subcommand_from help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c vdectl -n "__fish_vdectl_using_subcommand help; and not __fish_seen_subcommand_from vms list attach detach link top stats capture libvirt help" -f -a "vms" -d 'Show the VMs that run here'
complete -c vdectl -n "__fish_vdectl_using_subcommand help; and not __fish_seen_subcommand_from vms list attach detach link top stats capture libvirt help" -f -a "list" -d 'Show the NICs of a VM, with their links and counters'
complete -c vdectl -n "__fish_vdectl_using_subcommand help; and not __fish_seen_subcommand_from vms list attach detach link top stats capture libvirt help" -f -a "attach" -d 'Plug a NIC on a VDE network into a running VM'
complete -c vdectl -n "__fish_vdectl_using_subcommand help; and not __fish_seen_subcommand_from vms list attach detach link top stats capture libvirt help" -f -a "detach" -d 'Take a NIC out of a running VM'
complete -c vdectl -n "__fish_vdectl_using_subcommand help; and not __fish_seen_subcommand_from vms list attach detach link top stats capture libvirt help" -f -a "link" -d 'Plug the cables of a NIC into other networks, or pull them'
complete -c vdectl -n "__fish_vdectl_using_subcommand help; and not __fish_seen_subcommand_from vms list attach detach link top stats capture libvirt help" -f -a "top" -d 'Show all VMs, NICs and links live'
complete -c vdectl -n "__fish_vdectl_using_subcommand help; and not __fish_seen_subcommand_from vms list attach detach link top stats capture libvirt help" -f -a "stats" -d 'Print the counters'
complete -c vdectl -n "__fish_vdectl_using_subcommand help; and not __fish_seen_subcommand_from vms list attach detach link top stats capture libvirt help" -f -a "capture" -d 'Write the frames of a NIC to a file for Wireshark'
complete -c vdectl -n "__fish_vdectl_using_subcommand help; and not __fish_seen_subcommand_from vms list attach detach link top stats capture libvirt help" -f -a "libvirt" -d 'Plug NICs in and out of domains of libvirt, and see to these'
complete -c vdectl -n "__fish_vdectl_using_subcommand help; and not __fish_seen_subcommand_from vms list attach detach link top stats capture libvirt help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c vdectl -n "__fish_vdectl_using_subcommand help; and __fish_seen_subcommand_from link" -f -a "add" -d 'Plug it into one more network'
complete -c vdectl -n "__fish_vdectl_using_subcommand help; and __fish_seen_subcommand_from link" -f -a "remove" -d 'Pull one cable'
complete -c vdectl -n "__fish_vdectl_using_subcommand help; and __fish_seen_subcommand_from link" -f -a "replace" -d 'Move a cable to another network, without losing a frame'
complete -c vdectl -n "__fish_vdectl_using_subcommand help; and __fish_seen_subcommand_from link" -f -a "down" -d 'Let the guest see that the cable is pulled'
complete -c vdectl -n "__fish_vdectl_using_subcommand help; and __fish_seen_subcommand_from link" -f -a "up" -d 'Let the guest see that the cable is plugged in'
complete -c vdectl -n "__fish_vdectl_using_subcommand help; and __fish_seen_subcommand_from libvirt" -f -a "attach" -d 'Plug a NIC on a VDE network into a domain'
complete -c vdectl -n "__fish_vdectl_using_subcommand help; and __fish_seen_subcommand_from libvirt" -f -a "detach" -d 'Take a NIC out of a domain'
complete -c vdectl -n "__fish_vdectl_using_subcommand help; and __fish_seen_subcommand_from libvirt" -f -a "xml" -d 'Print what a NIC takes in the XML of a domain'
complete -c vdectl -n "__fish_vdectl_using_subcommand help; and __fish_seen_subcommand_from libvirt" -f -a "check" -d 'Say what a domain lacks for its VDE networks'
