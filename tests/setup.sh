#!/bin/sh
# What the tests need beside Python: nginx with njs and its sources, a compiler, a browser, node, PostgreSQL, Prometheus,
# Memcached, curl and openssl; `sh tests/setup.sh engines`: also what vLLM compiles with.
# Debian's packages are installed where that is allowed; anywhere else one line says what is missing.
set -eu

missing=""
need() { # PROGRAM DEBIAN_PACKAGE: asks for the package if the program is not there
    command -v "$1" >/dev/null 2>&1 || missing="$missing $2"
}

case ",${HEADRACE_TEST_SKIP:-}," in *,nginx,*) ;; *)
    PATH="$PATH:/usr/sbin:/usr/local/sbin" need nginx nginx
    if [ -f /etc/debian_version ] && ! ls /usr/lib/nginx/modules/ngx_http_js_module.so >/dev/null 2>&1; then
        missing="$missing libnginx-mod-http-js"
    fi
    need cc gcc
    need make make
    if [ -f /etc/debian_version ] && [ ! -d /usr/share/nginx/src ]; then
        missing="$missing nginx-dev"
    fi ;;
esac
case ",${HEADRACE_TEST_SKIP:-}," in *,chromium,*) ;; *)
    if ! command -v chromium >/dev/null 2>&1 && ! command -v google-chrome >/dev/null 2>&1; then
        missing="$missing chromium"
    fi
    need chromedriver chromium-driver ;;
esac
case ",${HEADRACE_TEST_SKIP:-}," in *,node,*) ;; *) need npm npm ;; esac
case ",${HEADRACE_TEST_SKIP:-}," in *,postgresql,*) ;; *)
    if ! command -v initdb >/dev/null 2>&1 && ! ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1; then
        need postgres postgresql
    fi ;;
esac
case ",${HEADRACE_TEST_SKIP:-}," in *,prometheus,*) ;; *)
    need promtool prometheus
    need prometheus prometheus ;;
esac
case ",${HEADRACE_TEST_SKIP:-}," in *,memcached,*) ;; *) need memcached memcached ;; esac
case "${1:-}" in engines) need c++ g++ ;; esac
need curl curl
need openssl openssl

[ -n "$missing" ] || exit 0

if command -v apt-get >/dev/null 2>&1 && [ "$(id -u)" = 0 ]; then
    echo "headrace: installing for the tests:$missing" >&2
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq >&2
    # shellcheck disable=SC2086
    apt-get install -qq -y --no-install-recommends $missing >&2
    exit 0
fi

if command -v apt-get >/dev/null 2>&1; then
    how="sudo apt-get install$missing"
else
    how="brew install nginx node postgresql prometheus memcached curl openssl && brew install --cask chromium chromedriver"
fi
echo "The tests need$missing: run \`$how\`, or leave those tests out with HEADRACE_TEST_SKIP=nginx,chromium,node,postgresql,prometheus,memcached" >&2
exit 1
