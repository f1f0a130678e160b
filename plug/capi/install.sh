#!/bin/sh
# Installs the C library, built before by: cargo build --profile capi -p vdeplug-capi
#
#	plug/capi/install.sh [PREFIX [LIBDIR]]
#
# PREFIX is /usr/local and LIBDIR PREFIX/lib unless they are given. DESTDIR is put before every name, for packagers;
# CARGO_TARGET_DIR is where Cargo built.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
prefix=${1:-/usr/local}
libdir=${2:-$prefix/lib}
for directory in "$prefix" "$libdir"; do
	case $directory in
	/*) ;;
	*)
		echo "$0: '$directory' is no absolute path; usage: install.sh [PREFIX [LIBDIR]], as in: install.sh /usr/local" >&2
		exit 2
		;;
	esac
done
library=${CARGO_TARGET_DIR:-$root/target}/capi/libvdeplug_capi.so
if [ ! -e "$library" ]; then
	echo "$0: there is no $library; build it first: cargo build --profile capi -p vdeplug-capi" >&2
	exit 1
fi
version=$(sed -n 's/^version = "\(.*\)"$/\1/p' "$root/Cargo.toml" | head -n 1)

to=${DESTDIR:-}
install -d "$to$libdir/pkgconfig" "$to$prefix/include"
install -m 0644 "$library" "$to$libdir/libvdeplug.so.2"
ln -sf libvdeplug.so.2 "$to$libdir/libvdeplug.so"
install -m 0644 "$here/include/libvdeplug.h" "$to$prefix/include/libvdeplug.h"
sed -e "s|@PREFIX@|$prefix|" -e "s|@LIBDIR@|$libdir|" -e "s|@VERSION@|$version|" \
	"$here/vdeplug.pc.in" >"$to$libdir/pkgconfig/vdeplug.pc"
