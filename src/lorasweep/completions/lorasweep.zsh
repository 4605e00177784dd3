#compdef lorasweep
# zsh completion of lorasweep:  source <(lorasweep completion zsh)
_lorasweep() {
    local program="${(Q)words[1]/#\~\//$HOME/}"
    local -a found open whole
    # $PREFIX, not $words[CURRENT]: the word as far as the cursor, without an opening quote
    found=("${(@f)$("$program" __complete "${(@Q)words[2,CURRENT-1]}" "${(Q)PREFIX}" 2> /dev/null)}")
    open=("${(@M)found:#*[=.]}")                            # goes on behind = and .
    whole=("${(@)found:#*[=.]}")
    whole=("${(@)whole:#}")
    if (( ! $#open && ! $#whole )); then
        compset -P '*='                                     # the path after data.train=
        _files
        return
    fi
    (( ! $#open )) || compadd -S '' -- "${open[@]}"         # an empty compadd would ring the bell
    (( ! $#whole )) || compadd -- "${whole[@]}"
}
if [[ $funcstack[1] == _lorasweep ]]; then                  # found on $fpath as _lorasweep, at the first tab
    _lorasweep "$@"
else
    (( $+functions[compdef] )) || { autoload -Uz compinit && compinit }
    compdef _lorasweep lorasweep
fi
